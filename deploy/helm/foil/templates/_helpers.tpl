{{- define "foil.name" -}}
{{- default .Release.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Labels of every object; a component's own come beside them. */}}
{{- define "foil.labels" -}}
{{ include "foil.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: foil
{{- end }}

{{- define "foil.selector" -}}
app.kubernetes.io/name: foil
app.kubernetes.io/instance: {{ include "foil.name" . }}
{{- end }}

{{/* An image by digest if there is one, else by tag. Takes (list root image). */}}
{{- define "foil.image" -}}
{{- $root := index . 0 -}}{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default $root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end }}

{{- define "foil.coordinators" -}}
{{- if .Values.store.url -}}{{ .Values.coordinator.replicas }}{{- else -}}1{{- end -}}
{{- end }}

{{/* URLs of all coordinators, by which an agent finds the leader. */}}
{{- define "foil.urls" -}}
{{- $name := include "foil.name" . -}}
{{- range $index := until (int (include "foil.coordinators" .)) -}}
{{- if $index }},{{ end -}}
https://{{ $name }}-coordinator-{{ $index }}.{{ $name }}-coordinator.{{ $.Release.Namespace }}.svc:7070
{{- end -}}
{{- end }}

{{/* Environment variables by which a program sends traces and metrics. */}}
{{- define "foil.otlp" -}}
{{- with .Values.otlp.endpoint -}}
- { name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }} }
- { name: OTEL_EXPORTER_OTLP_PROTOCOL, value: {{ $.Values.otlp.protocol }} }
- { name: OTEL_RESOURCE_ATTRIBUTES, value: "k8s.namespace.name={{ $.Release.Namespace }},k8s.pod.name=$(POD_NAME)" }
{{- end -}}
{{- end }}

{{/* Egress to the collector of traces and metrics. */}}
{{- define "foil.otlpEgress" -}}
{{- if .Values.otlp.endpoint -}}
- ports:
    {{- range .Values.networkPolicy.otlpPorts }}
    - port: {{ . }}
    {{- end }}
  to: {{ toYaml .Values.networkPolicy.otlp | nindent 4 }}
{{- end -}}
{{- end }}

{{/* The restricted Pod Security Standard, with a user of the images' own. */}}
{{- define "foil.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "foil.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{- define "foil.pod" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext: {{ include "foil.podSecurity" . | nindent 2 }}
{{- end }}

{{/* Pods of one kind on different nodes where that is possible. Takes (list root component). */}}
{{- define "foil.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "foil.selector" (index . 0) | nindent 8 }}
        app.kubernetes.io/component: {{ index . 1 }}
{{- end }}
