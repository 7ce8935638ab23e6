//! Verification of ranks' reports against the store, before any decision is based on them: an object counts
//! if it is stored under its key with the size and hash recorded at its upload.

use std::collections::BTreeSet;
use std::slice;

use foil_common::storage::object::Digest;
use foil_common::storage::{Store, StoreError};
use foil_proto::v1;
use foil_proto::v1::rank_message::Message;
use futures::future::try_join_all;

use super::plausibility;
use crate::schedule::{GangEvent, GangReport, ProtocolError, Report};

/// Maximum number of objects in an artifact.
const MAX_OBJECTS: usize = 4096;
/// Number of concurrent lookups in the store.
const PARALLEL_LOOKUPS: usize = 16;
const MAX_PATH_BYTES: usize = 255;
/// Maximum number of metrics in a report.
const MAX_METRICS: usize = 256;
const MAX_NAME_BYTES: usize = 128;

/// Converts a rank's message into a report.
///
/// # Errors
/// The message's form is wrong; see [`check_form`].
pub(super) fn parse(message: Message) -> Result<Report, ProtocolError> {
    check_form(&message).map_err(ProtocolError::FalseReport)?;
    message.try_into()
}

/// The first object in a report that differs from the stored one; none if all are as reported.
///
/// # Errors
/// The store is unavailable.
pub(super) async fn find_flaw(store: &Store, report: &Report) -> Result<Option<String>, StoreError> {
    let objects = match report {
        Report::Chunk(result) => slice::from_ref(&result.object),
        Report::Gang(GangReport { event: GangEvent::Checkpoint(shard), .. }) => {
            slice::from_ref(&shard.object)
        }
        Report::Gang(GangReport { event: GangEvent::Finished(result), .. }) => &result.objects,
        Report::Gang(_) | Report::Progress(_) | Report::Failure(_) => return Ok(None),
    };
    for batch in objects.chunks(PARALLEL_LOOKUPS) {
        let mut lookups = Vec::with_capacity(batch.len());
        for object in batch {
            lookups.push(mismatch(store, object));
        }
        let found = try_join_all(lookups).await?;
        if let Some(flaw) = found.into_iter().flatten().next() {
            return Ok(Some(flaw));
        }
    }
    Ok(None)
}

/// The difference between an object in a report and the one in the store, if any.
async fn mismatch(store: &Store, object: &v1::Object) -> Result<Option<String>, StoreError> {
    let key = &object.key;
    let absent = || Some(format!("{key} is not in the store"));
    let found = match store.stat_object(key).await {
        Ok(found) => Digest::from(&found),
        Err(StoreError::NotFound { .. }) => return Ok(absent()),
        Err(StoreError::BadKey { reason, .. }) => return Ok(Some(format!("{key:?} is not a key: {reason}"))),
        Err(StoreError::Corrupt { found, .. }) => return Ok(Some(format!("{key} is damaged: {found}"))),
        Err(error) => return Err(error),
    };
    if found != Digest::from(object) {
        return Ok(Some(format!(
            "{key} is reported with {} bytes and BLAKE3 {}, but has {} bytes and BLAKE3 {}",
            object.size, object.blake3, found.size, found.blake3
        )));
    }
    match store.size(key).await {
        Ok(size) if size == object.size => Ok(None),
        Ok(size) => Ok(Some(format!("{key} has {size} bytes instead of {}", object.size))),
        Err(StoreError::NotFound { .. }) => Ok(absent()),
        Err(error) => Err(error),
    }
}

/// Checks the form of a report, without the store.
pub(super) fn check_form(message: &Message) -> Result<(), String> {
    match message {
        Message::Chunk(result) => {
            result.object.iter().try_for_each(digest)?;
            let names = result.moments.iter().map(|moments| moments.name.as_str());
            metric_names(names)?;
            plausibility::check(result)
        }
        Message::Checkpoint(shard) => shard.object.iter().try_for_each(digest),
        Message::Gang(result) => {
            if result.objects.len() > MAX_OBJECTS {
                return Err(format!(
                    "it names {} objects; the maximum is {MAX_OBJECTS}",
                    result.objects.len()
                ));
            }
            let mut paths = BTreeSet::new();
            for object in &result.objects {
                digest(object)?;
                path(&object.path)?;
                if !paths.insert(&object.path) {
                    return Err(format!("it names {} twice", object.path));
                }
            }
            hash("parameters_blake3", &result.parameters_blake3)?;
            metric_names(result.metrics.iter().map(|metric| metric.name.as_str()))
        }
        Message::Step(report) => metric_names(report.metrics.iter().map(|metric| metric.name.as_str())),
        Message::Rendezvous(offer) => {
            let fits =
                (1..=255).contains(&offer.host.len()) && offer.host.chars().all(|c| c.is_ascii_graphic());
            let port = u16::try_from(offer.port).is_ok_and(|port| port > 0);
            if fits && port { Ok(()) } else { Err("its address is invalid".to_owned()) }
        }
        Message::Progress(progress) => name(&progress.unit),
        Message::Hello(_) | Message::Failure(_) => Ok(()),
    }
}

fn digest(object: &v1::Object) -> Result<(), String> {
    hash(&object.key, &object.blake3)
}

fn hash(what: &str, text: &str) -> Result<(), String> {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() == 64 && text.bytes().all(hex) {
        return Ok(());
    }
    let (what, text) = (cut(what, MAX_NAME_BYTES), cut(text, MAX_NAME_BYTES));
    Err(format!("the hash of {what} is {text:?}; expected 64 lower-case hex digits"))
}

/// Checks a file's path within its artifact: relative, and without leaving it.
fn path(path: &str) -> Result<(), String> {
    let part = |part: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+@ ".contains(&byte);
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain)
    };
    if path.len() <= MAX_PATH_BYTES && path.split('/').all(part) {
        return Ok(());
    }
    Err(format!("{:?} is not a valid path in an artifact", cut(path, MAX_PATH_BYTES)))
}

fn metric_names<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> Result<(), String> {
    if names.len() > MAX_METRICS {
        return Err(format!("it has {} metrics; the maximum is {MAX_METRICS}", names.len()));
    }
    let mut names = names;
    names.try_for_each(name)
}

fn name(text: &str) -> Result<(), String> {
    if text.len() <= MAX_NAME_BYTES && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(format!("{:?} is not a valid name", cut(text, MAX_NAME_BYTES)))
}

fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests;
