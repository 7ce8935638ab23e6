//! Events of TensorBoard's files, and their framing: in a TFRecord file, each record carries its length and
//! masked CRC-32C checksums of the length and the data.

use std::collections::BTreeMap;

use crc_fast::{CrcAlgorithm, checksum};
use foil_proto::v1;
use prost::Message;

use super::super::points::Point;
use super::super::source::Ending;
use super::messages::{
    Content, DT_FLOAT, DT_STRING, Dim, Event, HistogramProto, Hparam, HparamKind, HparamsPluginData,
    PluginData, SessionEndInfo, SessionStartInfo, SourceMetadata, Summary, SummaryMetadata, TensorProto,
    TensorShape, Value,
};

const FILE_VERSION: &str = "brain.Event:2";
/// Tags of the hparams plugin's summaries.
const START_TAG: &str = "_hparams_/session_start_info";
const END_TAG: &str = "_hparams_/session_end_info";

/// An event file in memory.
#[derive(Debug)]
pub(super) struct EventFile(Vec<u8>);

impl EventFile {
    /// A file that begins at `at`, in milliseconds since the Unix epoch.
    pub(super) fn new(at: u64) -> Self {
        let mut file = Self(Vec::new());
        let source_metadata = Some(SourceMetadata { writer: "foil".to_owned() });
        let file_version = FILE_VERSION.to_owned();
        file.push(&Event { wall_time: seconds(at), file_version, source_metadata, ..Event::default() });
        file
    }

    fn push(&mut self, event: &Event) {
        let data = event.encode_to_vec();
        let length = (data.len() as u64).to_le_bytes();
        self.0.extend_from_slice(&length);
        self.0.extend_from_slice(&masked_crc(&length).to_le_bytes());
        self.0.extend_from_slice(&data);
        self.0.extend_from_slice(&masked_crc(&data).to_le_bytes());
    }

    fn value(&mut self, at: u64, step: u64, value: Value) {
        let summary = Some(Summary { value: vec![value] });
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        self.push(&Event { wall_time: seconds(at), step, summary, ..Event::default() });
    }

    /// Adds scalars; consecutive ones of the same step share an event.
    pub(super) fn scalars(&mut self, points: &[Point]) {
        for group in points.chunk_by(|a, b| (a.step, a.at) == (b.step, b.at)) {
            let scalar = |point: &Point| Value {
                tag: point.key.to_string(),
                metadata: None,
                // TensorBoard's scalars are single precision.
                content: Some(Content::SimpleValue(point.value as f32)),
            };
            let summary = Some(Summary { value: group.iter().map(scalar).collect() });
            let step = i64::try_from(group[0].step).unwrap_or(i64::MAX);
            self.push(&Event { wall_time: seconds(group[0].at), step, summary, ..Event::default() });
        }
    }

    /// Adds a text in Markdown.
    pub(super) fn text(&mut self, tag: &str, at: u64, step: u64, text: String) {
        let tensor = TensorProto {
            dtype: DT_STRING,
            tensor_shape: Some(TensorShape { dim: vec![Dim { size: 1 }] }),
            string_val: vec![text.into_bytes()],
        };
        let value = Value {
            tag: tag.to_owned(),
            metadata: plugin("text", Vec::new()),
            content: Some(Content::Tensor(tensor)),
        };
        self.value(at, step, value);
    }

    pub(super) fn histogram(
        &mut self,
        tag: &str,
        at: u64,
        step: u64,
        histogram: &v1::RewardHistogram,
        edges: &[f64],
    ) {
        let count = histogram.count as f64;
        let squares = histogram.standard_deviation.unwrap_or_default().powi(2) * (count - 1.0).max(0.0);
        let proto = HistogramProto {
            min: histogram.min,
            max: histogram.max,
            num: count,
            sum: histogram.mean * count,
            sum_squares: squares + count * histogram.mean.powi(2),
            bucket_limit: edges.get(1..).unwrap_or_default().to_vec(),
            bucket: histogram.counts.iter().map(|count| *count as f64).collect(),
        };
        self.value(
            at,
            step,
            Value { tag: tag.to_owned(), metadata: None, content: Some(Content::Histo(proto)) },
        );
    }

    /// Adds the job's settings, for the table of hyperparameters.
    pub(super) fn hparams(&mut self, at: u64, settings: &BTreeMap<String, serde_json::Value>) {
        let hparams = settings.iter().map(|(name, value)| (name.clone(), Hparam { kind: Some(kind(value)) }));
        let session_start_info =
            Some(SessionStartInfo { hparams: hparams.collect(), start_time_secs: seconds(at) });
        let data = HparamsPluginData { session_start_info, session_end_info: None };
        self.value(at, 0, hparams_value(START_TAG, &data));
    }

    pub(super) fn end(&mut self, at: u64, outcome: &Ending) {
        let status = if *outcome == Ending::Succeeded { 1 } else { 2 };
        let session_end_info = Some(SessionEndInfo { status, end_time_secs: seconds(at) });
        let data = HparamsPluginData { session_start_info: None, session_end_info };
        self.value(at, 0, hparams_value(END_TAG, &data));
        let told = match outcome {
            Ending::Succeeded => "succeeded".to_owned(),
            Ending::Cancelled => "cancelled".to_owned(),
            Ending::Failed(why) => format!("failed: {}", literal(why)),
        };
        self.text("job/outcome", at, 0, told);
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

fn kind(value: &serde_json::Value) -> HparamKind {
    match value {
        serde_json::Value::Bool(flag) => HparamKind::Flag(*flag),
        serde_json::Value::Number(number) => HparamKind::Number(number.as_f64().unwrap_or(f64::NAN)),
        serde_json::Value::String(text) => HparamKind::Text(text.clone()),
        other => HparamKind::Text(other.to_string()),
    }
}

fn hparams_value(tag: &str, data: &HparamsPluginData) -> Value {
    let empty = TensorProto {
        dtype: DT_FLOAT,
        tensor_shape: Some(TensorShape { dim: vec![Dim { size: 0 }] }),
        string_val: Vec::new(),
    };
    Value {
        tag: tag.to_owned(),
        metadata: plugin("hparams", data.encode_to_vec()),
        content: Some(Content::Tensor(empty)),
    }
}

fn plugin(name: &str, content: Vec<u8>) -> Option<SummaryMetadata> {
    Some(SummaryMetadata { plugin_data: Some(PluginData { plugin_name: name.to_owned(), content }) })
}

/// A text that Markdown renders verbatim, as a block indented by four spaces.
pub(super) fn literal(text: &str) -> String {
    let mut shown = String::with_capacity(text.len() + 64);
    for line in text.split('\n') {
        shown.push_str("    ");
        shown.push_str(line);
        shown.push('\n');
    }
    shown
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

/// The checksum of TFRecord.
fn masked_crc(bytes: &[u8]) -> u32 {
    const MASK_DELTA: u32 = 0xa282_ead8;
    let crc = checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32;
    crc.rotate_right(15).wrapping_add(MASK_DELTA)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The records of a file, with their framing checked.
    fn records(mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_at(8);
            let (crc, rest) = rest.split_at(4);
            assert_eq!(crc, masked_crc(length).to_le_bytes());
            let size = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
            let (data, rest) = rest.split_at(size);
            let (crc, rest) = rest.split_at(4);
            assert_eq!(crc, masked_crc(data).to_le_bytes());
            events.push(Event::decode(data).unwrap());
            bytes = rest;
        }
        events
    }

    #[test]
    fn the_checksum_is_crc_32c_masked_as_tensorflow_does() {
        // RFC 3720, B.4: 32 bytes of zeros have the CRC-32C 8a9136aa.
        let crc = 0x8a91_36aa_u32;
        assert_eq!(masked_crc(&[0; 32]), crc.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn points_of_one_step_share_an_event() {
        let point = |key: &str, step, at| Point { key: key.into(), step, value: 0.5, at };
        let mut file = EventFile::new(1500);
        file.scalars(&[point("a", 1, 2000), point("b", 1, 2000), point("a", 2, 3000)]);
        let events = records(&file.into_bytes());
        assert_eq!((events[0].file_version.as_str(), events[0].wall_time), ("brain.Event:2", 1.5));
        let facts: Vec<_> = events[1..]
            .iter()
            .map(|event| (event.step, event.wall_time, event.summary.as_ref().unwrap().value.len()))
            .collect();
        assert_eq!(facts, [(1, 2.0, 2), (2, 3.0, 1)]);
    }

    #[test]
    fn moments_of_a_histogram_are_those_of_its_values() {
        let values = [1.0_f64, 2.0, 4.0];
        let mean = 7.0 / 3.0;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 2.0;
        let histogram = v1::RewardHistogram {
            counts: vec![2, 1],
            count: 3,
            mean,
            standard_deviation: Some(variance.sqrt()),
            min: 1.0,
            max: 4.0,
            ..Default::default()
        };
        let mut file = EventFile::new(0);
        file.histogram("rewards/training", 0, 1, &histogram, &[1.0, 2.5, 4.0]);
        let events = records(&file.into_bytes());
        let value = &events[1].summary.as_ref().unwrap().value[0];
        let Some(Content::Histo(found)) = &value.content else { panic!("{value:?}") };
        assert!((found.sum_squares - 21.0).abs() < 1e-9 && (found.sum - 7.0).abs() < 1e-9, "{found:?}");
        assert_eq!(
            (found.bucket_limit.as_slice(), found.bucket.as_slice()),
            (&[2.5, 4.0][..], &[2.0, 1.0][..])
        );
    }
}
