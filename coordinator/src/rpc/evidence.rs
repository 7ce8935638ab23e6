//! What ranks report, held against the store before anything is decided on it: an object counts when it lies under its key
//! with the size and hash that were recorded when it was uploaded.

use std::collections::BTreeSet;

use foil_common::storage::object::Digest;
use foil_common::storage::{Store, StoreError};
use foil_proto::v1;
use foil_proto::v1::rank_message::Message;
use futures::future::try_join_all;

use super::plausible;

/// Objects of one artifact.
const MOST_OBJECTS: usize = 4096;
/// Objects looked at together.
const AT_ONCE: usize = 16;
const LONGEST_PATH: usize = 255;
/// Figures of one report.
const MOST_FIGURES: usize = 512;
const LONGEST_NAME: usize = 128;

/// What the store and plain sense say against a report; none where it holds.
///
/// # Errors
/// The store cannot be asked.
pub(super) async fn flaw(store: &Store, message: &Message) -> Result<Option<String>, StoreError> {
    if let Err(flaw) = shape(message) {
        return Ok(Some(flaw));
    }
    let objects: Vec<&v1::Object> = match message {
        Message::Chunk(result) => result.object.iter().collect(),
        Message::Checkpoint(share) => share.object.iter().collect(),
        Message::Gang(result) => result.objects.iter().collect(),
        _ => return Ok(None),
    };
    for some in objects.chunks(AT_ONCE) {
        let mut looks = Vec::with_capacity(some.len());
        for object in some {
            looks.push(missing(store, object));
        }
        let looked = try_join_all(looks).await?;
        if let Some(flaw) = looked.into_iter().flatten().next() {
            return Ok(Some(flaw));
        }
    }
    Ok(None)
}

/// How an object that a report names differs from the one in the store.
async fn missing(store: &Store, object: &v1::Object) -> Result<Option<String>, StoreError> {
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
            "{key} is told to have {} bytes of BLAKE3 {}, and has {} bytes of BLAKE3 {}",
            object.size, object.blake3, found.size, found.blake3
        )));
    }
    match store.size(key).await {
        Ok(size) if size == object.size => Ok(None),
        Ok(size) => Ok(Some(format!("{key} has {size} bytes of {}", object.size))),
        Err(StoreError::NotFound { .. }) => Ok(absent()),
        Err(error) => Err(error),
    }
}

/// What a report may look like, whatever the store holds.
fn shape(message: &Message) -> Result<(), String> {
    match message {
        Message::Chunk(result) => {
            result.object.iter().try_for_each(digest)?;
            let names = result.moments.iter().map(|moments| moments.name.as_str());
            figures(names)?;
            plausible::figures(result)
        }
        Message::Checkpoint(share) => {
            let object = share.object.as_ref().ok_or("a checkpoint's share comes without its object")?;
            digest(object)
        }
        Message::Gang(result) => {
            if result.objects.len() > MOST_OBJECTS {
                return Err(format!(
                    "it names {} objects; {MOST_OBJECTS} are too many",
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
            figures(result.metrics.iter().map(|metric| metric.name.as_str()))
        }
        Message::Step(report) => figures(report.figures.iter().map(|metric| metric.name.as_str())),
        Message::Rendezvous(offer) => {
            let fits =
                (1..=255).contains(&offer.host.len()) && offer.host.chars().all(|c| c.is_ascii_graphic());
            let port = u16::try_from(offer.port).is_ok_and(|port| port > 0);
            if fits && port { Ok(()) } else { Err("its address is none".to_owned()) }
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
    let (what, text) = (cut(what, LONGEST_NAME), cut(text, LONGEST_NAME));
    Err(format!("the hash of {what} is {text:?}; expected 64 lower-case hex digits"))
}

/// A file's name inside its artifact: relative, and with no way out of it.
fn path(path: &str) -> Result<(), String> {
    let part = |part: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+@ ".contains(&byte);
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain)
    };
    if path.len() <= LONGEST_PATH && path.split('/').all(part) {
        return Ok(());
    }
    Err(format!("{:?} is no path of a file in an artifact", cut(path, LONGEST_PATH)))
}

fn figures<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> Result<(), String> {
    if names.len() > MOST_FIGURES {
        return Err(format!("it has {} figures; {MOST_FIGURES} are enough", names.len()));
    }
    let mut names = names;
    names.try_for_each(name)
}

fn name(text: &str) -> Result<(), String> {
    if text.len() <= LONGEST_NAME && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(format!("{:?} is no name", cut(text, LONGEST_NAME)))
}

fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

#[cfg(test)]
mod tests;
