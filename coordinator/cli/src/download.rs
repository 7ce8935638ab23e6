//! Download of artifacts.

use std::path::Path;

use anyhow::{Context, Result};
use foil_common::rpc::{LeaderChannel, artifacts};
use foil_common::safe_path;
use foil_proto::v1;

use crate::progress::{self, Progress};

/// Downloads an artifact's files into `dir`. Each appears only when it is complete and verified; existing
/// ones are not downloaded again.
pub(crate) async fn artifact(
    line: &LeaderChannel,
    artifact: &v1::Artifact,
    dir: &Path,
    progress: &Progress,
) -> Result<()> {
    let total = artifact.objects.iter().map(|object| object.size).sum();
    let bar = progress.bytes(&format!("pulling {}", artifact.name), total);
    let moved = progress::moves(&bar);
    for object in &artifact.objects {
        let name = file_name(object).with_context(|| format!("artifact {}", artifact.name))?;
        let path = dir.join(name);
        if is_there(object, &path).await {
            moved(object.size);
        } else {
            artifacts::download_to_file(line, object, &path, &moved).await?;
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Downloads the objects that `dir` lacks, without a progress bar.
pub(crate) async fn quietly(line: &LeaderChannel, objects: &[v1::Object], dir: &Path) -> Result<()> {
    for object in objects {
        let path = dir.join(file_name(object)?);
        if !is_there(object, &path).await {
            artifacts::download_to_file(line, object, &path, &artifacts::unfollowed()).await?;
        }
    }
    Ok(())
}

async fn is_there(object: &v1::Object, path: &Path) -> bool {
    let same_size = path.metadata().is_ok_and(|metadata| metadata.len() == object.size);
    same_size && artifacts::digest_of_file(path).await.is_ok_and(|digest| digest.blake3 == object.blake3)
}

/// The path of a file in the directory. The coordinator chose it, so it must not escape the directory.
fn file_name(object: &v1::Object) -> Result<&Path> {
    let name = match object.path.as_str() {
        "" => object.key.rsplit('/').next().unwrap_or_default(),
        path => path,
    };
    let inside = safe_path::parse(name);
    inside
        .with_context(|| format!("{name:?} is not a valid file name; the coordinator's response is damaged"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_escape_the_directory_are_refused() {
        let object = |path: &str| v1::Object { path: path.into(), ..Default::default() };
        assert_eq!(file_name(&object("model.safetensors")).unwrap(), Path::new("model.safetensors"));
        for path in ["../x", "/etc/x", ".ssh", "a\\b"] {
            assert!(file_name(&object(path)).is_err(), "{path}");
        }
    }
}
