//! `foil export`: a model for publishing or serving, in another number format, in shards, or its adapter
//! alone.

mod convert;
mod files;
mod layout;
mod numbers;
mod source;
mod work;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use foil_common::model::WeightFiles;
use foil_common::plural::counted;
use foil_common::shutdown::{self, Shutdown};
use foil_proto::v1;
use serde_json::json;

use self::convert::{Corrupt, Pass, Stopped};
use self::files::Files;
use self::layout::Layout;
use self::numbers::ExportDtype;
use self::source::{ADAPTER, Source};
use self::work::Work;
use super::card::names::{self, Base};
use super::card::{self, AdapterBase, Card, ModelFile, Provenance};
use super::client_args::{ClientArgs, job_or_directory};
use super::progress::{self, Progress};
use super::{download, size, stdout};

/// The weights of an adapter, in PEFT's layout.
const ADAPTER_TENSORS: &str = "adapter_model.safetensors";

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The model: a job's artifact (JOB/policy@best, JOB/policy@last, JOB/reward@2), one of a run's
    /// directory (runs/hh/policy@best), or a directory with a model.
    #[arg(value_name = "MODEL", value_parser = job_or_directory)]
    what: String,
    /// Output directory. It appears when the export is complete; the same command resumes an interrupted
    /// export.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Number format of the weights, rounded to the nearest. Default: unchanged
    #[arg(long, value_enum, value_name = "FORMAT")]
    dtype: Option<ExportDtype>,
    /// Maximum size of a weights file; larger models are split into shards with an index.
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size::bytes)]
    max_shard_size: u64,
    /// Only the LoRA adapter, in the layout of PEFT. Without it, the model with the adapter merged into it.
    #[arg(long)]
    adapter: bool,
    /// The model that the adapter adapts, as `from_pretrained` takes it. Default: the model that the job
    /// started from
    #[arg(long, value_name = "NAME", requires = "adapter")]
    base_model: Option<String>,
    /// Replace an earlier export in DIR.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn export(args: &ExportArgs) -> Result<ExitCode> {
    work::require_free(&args.dir, args.force)?;
    let stop = shutdown::on_signal()?;
    let source = Source::find(&args.what, &args.client).await?;
    let base = match args.adapter {
        true => {
            require_adapter(&source)?;
            Some(base_model(args, &source)?)
        }
        false => None,
    };
    let request = json!({
        "source": source.identity()?,
        "dtype": args.dtype.map(|dtype| dtype.dtype().to_string()),
        "max_shard_size": args.max_shard_size,
        "adapter": base,
    });
    let work = Work::open(&args.dir, request)?;
    let mut progress = Progress::new(true);
    let result = make(args, &source, base, work, &progress, &stop).await;
    progress.finish();
    match (result, stop.cause()) {
        (Ok(told), _) => {
            stdout::note(&told);
            stdout::line(&args.dir.display().to_string())?;
            Ok(ExitCode::SUCCESS)
        }
        (Err(error), Some(cause)) if error.is::<Stopped>() => {
            stdout::note("stopped; the same command resumes the export");
            Ok(ExitCode::from(cause.exit_code()))
        }
        (Err(error), _) => Err(error),
    }
}

/// Refuses to export the adapter of a model that has none.
fn require_adapter(source: &Source) -> Result<()> {
    match source {
        Source::Local { dir, .. } => adapter_weights(dir).map(drop),
        Source::Remote { artifact, .. } => wanted(artifact, true).map(drop),
    }
}

/// The file with the weights of a model's adapter.
fn adapter_weights(model: &Path) -> Result<PathBuf> {
    let path = model.join(ADAPTER).join(ADAPTER_TENSORS);
    if !path.is_file() {
        bail!(
            "{} has no adapter: there is no {ADAPTER}/{ADAPTER_TENSORS} in it. Leave --adapter away to export the model",
            model.display()
        );
    }
    Ok(path)
}

/// The model that an adapter adapts.
fn base_model(args: &ExportArgs, source: &Source) -> Result<String> {
    if let Some(base) = &args.base_model {
        return Ok(base.clone());
    }
    let advice = "name the model that it adapts with --base-model";
    let Some(made) = source.made() else {
        bail!("{} does not say what its adapter adapts; {advice}", args.what);
    };
    if made.has_sft {
        bail!(
            "the adapter of {} adapts policy@0 of the same job, which was fine-tuned before round 1: export that one too, and {advice}",
            args.what
        );
    }
    match made.base() {
        Some(Base::Model(name)) => Ok(names::repository(&name).unwrap_or(name)),
        Some(Base::Artifact { job, artifact }) => {
            bail!("the adapter of {} adapts {job}/{artifact}: export that one too, and {advice}", args.what)
        }
        Some(Base::Random(_)) | None => {
            bail!("the model that the adapter of {} adapts has no name; {advice}", args.what)
        }
    }
}

/// Downloads what is missing, converts it, and places the export. Returns a one-line summary.
async fn make(
    args: &ExportArgs,
    source: &Source,
    base: Option<String>,
    work: Work,
    progress: &Progress,
    stop: &Shutdown,
) -> Result<String> {
    let from = match source {
        Source::Local { dir, .. } => dir.clone(),
        Source::Remote { client, artifact, .. } => {
            let wanted = wanted(artifact, args.adapter)?;
            // The download, and at most as much again in another format.
            let size: u64 = wanted.objects.iter().map(|object| object.size).sum();
            let factor = if args.dtype == Some(ExportDtype::Fp32) { 3 } else { 2 };
            work.require_space(size.saturating_mul(factor))?;
            let (line, to) = (client.line(), work.source());
            tokio::select! {
                downloaded = download::artifact(&line, &wanted, &to, progress) => downloaded?,
                () = stop.requested() => return Err(Stopped.into()),
            }
            to
        }
    };
    let job = Job {
        from,
        made: source.made().cloned(),
        base,
        dtype: args.dtype,
        limit: args.max_shard_size,
        force: args.force,
    };
    let bar = progress.bytes("exporting", 0);
    let (moved, shown) = (progress::moves(&bar), bar.clone());
    let token = stop.token();
    let converting = tokio::task::spawn_blocking(move || {
        job.run(work, &|total| shown.set_length(total), &|bytes| moved(bytes), &|| token.is_cancelled())
    });
    let told = converting.await.context("the export was aborted")?;
    bar.finish_and_clear();
    told
}

/// The files of an artifact that an export reads: the adapter's weights or the model's.
fn wanted(artifact: &v1::Artifact, adapter: bool) -> Result<v1::Artifact> {
    let is_of_adapter = |object: &v1::Object| object.path.starts_with(&format!("{ADAPTER}/"));
    if adapter && !artifact.objects.iter().any(is_of_adapter) {
        bail!(
            "{} has no adapter: the job trained all weights. Leave --adapter away to export the model",
            artifact.name
        );
    }
    let is_weights = |object: &v1::Object| object.path.contains(".safetensors");
    let is_wanted = |object: &&v1::Object| match is_of_adapter(object) {
        true => adapter,
        false => !(adapter && is_weights(object)),
    };
    let objects = artifact.objects.iter().filter(is_wanted).cloned().collect();
    Ok(v1::Artifact { objects, ..artifact.clone() })
}

/// One export of a directory.
struct Job {
    from: PathBuf,
    made: Option<Provenance>,
    /// The base model of an adapter; none for the whole model.
    base: Option<String>,
    dtype: Option<ExportDtype>,
    limit: u64,
    force: bool,
}

impl Job {
    fn run(
        &self,
        mut work: Work,
        total: &dyn Fn(u64),
        moved: &dyn Fn(u64),
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<String> {
        let layout = self.layout()?;
        let (read, written) = layout.sizes();
        let source = if self.from == work.source() { read } else { 0 };
        work.require_space(written + source)?;
        total(read);
        let expected = |path: &Path| {
            let name = path.strip_prefix(&self.from).ok()?.to_string_lossy();
            Files::expected(self.made.as_ref(), &name)
        };
        let pass = Pass { layout: &layout, expected: &expected, moved, is_stopped };
        let done = pass.run(&mut work).and_then(|weights| self.complete(&work, &layout, weights));
        if let Err(error) = &done
            && error.is::<Corrupt>()
        {
            work.abandon();
            return done;
        }
        let told = done?;
        work.place(self.force)?;
        Ok(told)
    }

    fn layout(&self) -> Result<Layout> {
        let to = self.dtype.map(ExportDtype::dtype);
        match self.base {
            None => Layout::new(&WeightFiles::open(&self.from)?, to, self.limit, None),
            Some(_) => {
                let mut weights = WeightFiles::default();
                weights.add_file(adapter_weights(&self.from)?)?;
                Layout::new(&weights, to, self.limit, Some(ADAPTER_TENSORS))
            }
        }
    }

    /// Writes everything but the weights.
    fn complete(&self, work: &Work, layout: &Layout, mut written: Vec<ModelFile>) -> Result<String> {
        let out = work.out();
        let files = Files { from: &self.from, to: &out, made: self.made.as_ref() };
        if let Some(index) = &layout.index {
            written.push(files.write(Layout::index_name(), format!("{index:#}\n").as_bytes())?);
        }
        written.push(match &self.base {
            None => files.config(self.dtype.map(ExportDtype::dtype))?,
            Some(base) => files.adapter_config(ADAPTER, base)?,
        });
        written.extend(files.text()?);
        written.sort_by(|a, b| a.name.cmp(&b.name));
        self.card(&files, &written)?;
        let bytes = written.iter().map(|file| file.size).sum();
        Ok(format!(
            "exported {} in {}, {}",
            counted(layout.parameters, "parameter"),
            counted(layout.shards.len(), "weight file"),
            size::text(bytes)
        ))
    }

    /// Writes the model card and its machine-readable counterpart. A model that Foil did not make keeps its
    /// card.
    fn card(&self, files: &Files<'_>, written: &[ModelFile]) -> Result<()> {
        let readme = self.from.join(card::README);
        let Some(made) = &self.made else {
            if readme.is_file() {
                let text =
                    std::fs::read(&readme).with_context(|| format!("cannot read {}", readme.display()))?;
                files.write(card::README, &text)?;
            }
            return Ok(());
        };
        let object = |file: &ModelFile| v1::Object {
            path: file.name.clone(),
            size: file.size,
            blake3: file.blake3.clone(),
            ..Default::default()
        };
        let mut exported = made.clone();
        exported.artifact.objects = written.iter().map(object).collect();
        files.write(card::provenance::FILE, &exported.json()?)?;
        if self.base.is_none() && readme.is_file() && card::is_edited(&readme) {
            let text = std::fs::read(&readme).with_context(|| format!("cannot read {}", readme.display()))?;
            stdout::note(&format!("{} was edited and is taken as it is", readme.display()));
            files.write(card::README, &text)?;
            return Ok(());
        }
        let adapter = self.base.as_deref().map(AdapterBase::new);
        let card = Card { made: &exported, adapter, files: written.to_vec() };
        files.write(card::README, card.text().as_bytes()).map(drop)
    }
}

#[cfg(test)]
mod tests;
