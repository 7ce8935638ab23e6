"""Trains the small game over gRPC: submits it, watches it, reads its logs, fetches the policy and loads it.

pip install grpcio grpcio-tools blake3 transformers torch
mkdir -p stubs && python -m grpc_tools.protoc -I proto --python_out=stubs --grpc_python_out=stubs proto/foil/v1/*.proto
PYTHONPATH=stubs python proto/examples/train.py 127.0.0.1:7070 letters-policy
"""

import json
import pathlib
import sys
import uuid

import blake3
import grpc
from foil.v1 import artifacts_pb2 as data
from foil.v1 import artifacts_pb2_grpc, jobs_pb2, jobs_pb2_grpc
from transformers import AutoModelForCausalLM

MODEL = pathlib.Path(__file__).parents[2] / "deploy/jobs/letters"
CHUNK = 1 << 20  # bytes of a message


def upload(artifacts, content):
    """Uploads an input under its hash, which the specification refers to; returns the hash."""
    digest = blake3.blake3(content).hexdigest()
    parts = [data.PutRequest(begin=data.PutBegin(key=f"inputs/{digest}", size=len(content), blake3=digest))]
    parts += [data.PutRequest(data=content[at : at + CHUNK]) for at in range(0, len(content), CHUNK)]
    artifacts.Put(iter(parts))
    return digest


def upload_model(artifacts, folder):
    files = [(file.name, file.read_bytes()) for file in sorted(folder.glob("*.json"))]
    objects = [{"path": name, "size": len(content), "blake3": upload(artifacts, content)} for name, content in files]
    for entry in objects:
        entry["key"] = f"inputs/{entry['blake3']}"
    listing = json.dumps({"name": folder.name, "kind": "model", "objects": objects})
    return f"model:{upload(artifacts, listing.encode())}:{folder.name}"


address, out = sys.argv[1], pathlib.Path(sys.argv[2])
channel = grpc.insecure_channel(address)
jobs, artifacts = jobs_pb2_grpc.JobsStub(channel), artifacts_pb2_grpc.ArtifactsStub(channel)
spec = jobs_pb2.JobSpec(name="letters-python", rounds=1)
spec.policy.model, spec.policy.init = upload_model(artifacts, MODEL), "random"
spec.text.max_length, spec.sampling.max_new_tokens = 32, 16
spec.data.generator.name, spec.evaluation.gold = "letters", "letters"
spec.data.gold_preferences.pairs = 64
job = jobs.Submit(jobs_pb2.SubmitRequest(spec=spec, request_id=str(uuid.uuid4()))).job
for event in jobs.Watch(jobs_pb2.WatchJobRequest(id=job.id)):
    if event.WhichOneof("event") == "phase_committed":
        print(f"{event.phase_committed.phase}: {event.phase_committed.seconds:.1f} s")
for part in jobs.Logs(jobs_pb2.LogsRequest(job_id=job.id, tail=3)):
    for entry in part.lines:
        print(f"rank {entry.rank}: {json.loads(entry.line)['message'] if entry.line else 'dropped'}")
job = jobs.Get(jobs_pb2.GetJobRequest(id=job.id))
assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED, job.failure
out.mkdir(parents=True)
for file in next(artifact for artifact in job.artifacts if artifact.name == "policy@1").objects:
    (out / file.path).write_bytes(b"".join(part.data for part in artifacts.Get(data.GetRequest(key=file.key))))
print(AutoModelForCausalLM.from_pretrained(out).num_parameters(), "parameters")
