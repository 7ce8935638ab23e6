//! Submissions that would be enormous, that compute endlessly, or that name files which unpack to gigabytes.
//! Each is a dry run, and none may be accepted.

use std::io::Write;
use std::sync::OnceLock;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use foil_common::rpc::artifacts::upload_input_bytes;
use foil_proto::v1;

use super::Aim;

/// A change that makes a job hostile.
type Edit = fn(&mut v1::JobSpec);

async fn try_out(aim: &Aim, edit: impl FnOnce(&mut v1::JobSpec)) {
    let mut spec = aim.spec.clone();
    edit(&mut spec);
    let request = v1::SubmitRequest { spec: Some(spec), request_id: String::new(), dry_run: true };
    let _ = aim.jobs().submit(request).await;
}

/// Jobs whose plans would take gigabytes.
pub(super) async fn enormous_jobs(aim: Aim) {
    let edits: [Edit; 9] = [
        |spec| spec.rounds = Some(20_000),
        |spec| spec.rounds = Some(1_000_000),
        |spec| spec.rounds = Some(u32::MAX),
        |spec| generator(spec).prompts = Some(u32::MAX),
        |spec| generator(spec).sft = Some(u32::MAX),
        |spec| generator(spec).evaluation = Some(u32::MAX),
        |spec| gold_preferences(spec).pairs = Some(u32::MAX),
        |spec| {
            let step = spec.policy_step.get_or_insert_default();
            (step.samples, step.epochs, step.batch_sequences) =
                (Some(u32::MAX), Some(u32::MAX), Some(u32::MAX));
        },
        |spec| {
            let resources = spec.resources.get_or_insert_default();
            (resources.ranks, resources.threads_per_rank) = (Some(u32::MAX), Some(u32::MAX));
        },
    ];
    for edit in edits {
        try_out(&aim, edit).await;
    }
}

fn generator(spec: &mut v1::JobSpec) -> &mut v1::GeneratorSpec {
    spec.data.get_or_insert_default().generator.get_or_insert_default()
}

fn gold_preferences(spec: &mut v1::JobSpec) -> &mut v1::GoldPreferencesSpec {
    spec.data.get_or_insert_default().gold_preferences.get_or_insert_default()
}

/// Chat templates that write or compute endlessly.
pub(super) async fn endless_templates(aim: Aim) {
    let doubling = format!("{{% set a = 'a' %}}{}{{{{ a }}}}", "{% set a = a ~ a %}".repeat(64));
    let nested = "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}{% endfor %}\
                  {% endfor %}{% endfor %}";
    let deep = format!("{}1{}", "{{ (".to_owned() + &"(".repeat(50_000), ")".repeat(50_000) + ") }}");
    let templates = [
        "{{ 'a' | indent(100000000000) }}",
        "{{ messages | tojson(indent=100000000000) }}",
        "{{ 'a' * 100000000000 }}",
        "{{ 'a'.ljust(100000000000) }}",
        "{{ '%0100000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ 'a'.replace('', 'b' * 1000000) * 1000000 }}",
        "{{ range(10 ** 12) | list }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        &doubling,
        nested,
        &deep,
    ];
    for template in templates {
        try_out(&aim, |spec| spec.text.get_or_insert_default().template = template.to_owned()).await;
    }
}

/// A small file that unpacks to gigabytes of valid rows, and one that unpacks to blanks.
pub(super) async fn decompression_bombs(aim: Aim) {
    static BOMBS: OnceLock<[Bytes; 3]> = OnceLock::new();
    let bombs = BOMBS.get_or_init(|| {
        let rows = b"{\"prompt\": \"a\"}\n".repeat(1 << 16);
        [members(&rows, 1500), members(&vec![b' '; 1 << 20], 4000), members(&vec![b'['; 1 << 20], 100)]
    });
    for bomb in bombs {
        let Ok(object) = upload_input_bytes(&aim.channel(), bomb.clone()).await else { continue };
        let name = format!("input:{}:bomb.jsonl.gz", object.blake3);
        try_out(&aim, |spec| {
            let data = spec.data.get_or_insert_default();
            data.generator = None;
            data.gold_preferences = None;
            data.prompts = vec![name.clone()];
            data.preferences = vec![name.clone()];
            data.golden = vec![name.clone()];
            data.sft = vec![name];
        })
        .await;
    }
}

/// A gzip file of `count` members with the same content.
fn members(content: &[u8], count: usize) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).expect("memory can be written");
    encoder.finish().expect("memory can be written").repeat(count).into()
}

/// Lists of hundreds of thousands of entries, and texts as long as a message allows.
pub(super) async fn long_lists(aim: Aim) {
    let edits: [Edit; 6] = [
        |spec| spec.data.get_or_insert_default().preferences = vec![String::new(); 200_000],
        |spec| spec.sampling.get_or_insert_default().stop = vec!["a".to_owned(); 150_000],
        |spec| {
            let step = spec.policy_step.get_or_insert_default();
            step.optimizer.get_or_insert_default().betas = vec![0.5; 60_000];
        },
        |spec| {
            let step = spec.policy_step.get_or_insert_default();
            step.lora.get_or_insert_default().target_modules = vec!["q_proj".to_owned(); 60_000];
        },
        |spec| spec.name = "x".repeat(500_000),
        |spec| spec.text.get_or_insert_default().template = "{{ a }}".repeat(70_000),
    ];
    for edit in edits {
        try_out(&aim, edit).await;
    }
    // Two bytes each on the wire.
    try_out(&aim, |spec| spec.data.get_or_insert_default().prompts = vec![String::new(); 1_900_000]).await;
}
