//! Checks of this machine: disk, descriptors, ports, shared memory.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::Path;

use foil_coordinator::descriptors;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use tokio::net::TcpListener;

use super::finding::Finding;

const GIB: u64 = 1 << 30;
/// With less free space, a checkpoint of a small model may not fit.
const SCARCE_BYTES: u64 = 5 * GIB;
/// With less free space, the log itself may not fit.
const NO_BYTES: u64 = GIB / 4;
/// Shared memory for NCCL's buffers between the GPUs of a host; containers often have 64 MiB.
const SHARED_MEMORY_BYTES: u64 = GIB;
/// Number of connections of a coordinator that the limit of descriptors should allow.
const CONNECTIONS: usize = 4096;

/// Free space of a file system.
#[derive(Debug, Clone, Copy)]
struct Room {
    total: u64,
    free: u64,
    free_files: u64,
    /// Whether the file system counts its files.
    counts_files: bool,
}

fn room(path: &Path) -> io::Result<Room> {
    // A directory that does not exist yet will be on the file system of its nearest parent.
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let found = statvfs(existing)?;
    let block = found.fragment_size();
    Ok(Room {
        total: found.blocks() * block,
        free: found.blocks_available() * block,
        free_files: found.files_available(),
        counts_files: found.files() > 0,
    })
}

pub(super) fn disk(path: &Path) -> Finding {
    match room(path) {
        Ok(room) => judge_disk(path, room),
        Err(error) => {
            Finding::fail("disk", format!("{}: {error}", path.display()), "give a directory that exists")
        }
    }
}

fn judge_disk(path: &Path, room: Room) -> Finding {
    let gib = |bytes: u64| bytes as f64 / GIB as f64;
    let message = format!("{}: {:.1} of {:.1} GiB free", path.display(), gib(room.free), gib(room.total));
    if room.counts_files && room.free_files == 0 {
        return Finding::fail(
            "disk",
            format!("{message}, but no inodes"),
            "delete files: no new one can be made",
        );
    }
    let advice = "free some space: a checkpoint takes 12 bytes and a model 4 for each parameter";
    match room.free {
        NO_BYTES.. if room.free >= SCARCE_BYTES => Finding::ok("disk", message),
        NO_BYTES.. => Finding::warn("disk", message, advice),
        _ => Finding::fail("disk", message, advice),
    }
}

pub(super) fn descriptors() -> Finding {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) => judge_descriptors(hard),
        Err(error) => {
            Finding::warn("descriptors", format!("their limit is unknown: {error}"), "look at `ulimit -Hn`")
        }
    }
}

fn judge_descriptors(limit: u64) -> Finding {
    let connections = descriptors::connections(limit, CONNECTIONS);
    let message = format!("at most {limit} open files: {connections} connections to a coordinator");
    match connections {
        CONNECTIONS.. => Finding::ok("descriptors", message),
        _ => Finding::warn(
            "descriptors",
            message,
            "raise the hard limit where many clients or agents connect: LimitNOFILE of systemd, --ulimit nofile of docker",
        ),
    }
}

/// Checks the address that a coordinator is to listen on. If a coordinator has `answered`, it may be the one
/// that listens there.
pub(super) async fn port(address: SocketAddr, answered: bool) -> Finding {
    judge_port(address, TcpListener::bind(address).await.map(drop), answered)
}

fn judge_port(address: SocketAddr, bound: io::Result<()>, answered: bool) -> Finding {
    let other = "give `foil serve` another address with --listen";
    match bound {
        Ok(()) => Finding::ok("port", format!("{address} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse && answered => {
            Finding::ok("port", format!("{address} is taken, as it should be by a coordinator that runs"))
        }
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let message = format!("another program listens on {address}");
            Finding::fail("port", message, format!("{other}, or end that program (`ss -ltnp`)"))
        }
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
            Finding::fail("port", format!("{} is no address of this machine", address.ip()), other)
        }
        Err(error) => Finding::fail("port", format!("cannot listen on {address}: {error}"), other),
    }
}

pub(super) fn shared_memory(uses_gpus: bool) -> Finding {
    judge_shared_memory(room(Path::new("/dev/shm")).ok().map(|room| room.total), uses_gpus)
}

fn judge_shared_memory(total: Option<u64>, uses_gpus: bool) -> Finding {
    let advice =
        "give the container more: --shm-size=8g of docker, an emptyDir with medium Memory in Kubernetes";
    match total {
        Some(total) if total >= SHARED_MEMORY_BYTES || !uses_gpus => {
            let mib = total >> 20;
            let need = if uses_gpus { "" } else { " (NCCL alone needs it)" };
            Finding::ok("shm", format!("/dev/shm has {mib} MiB{need}"))
        }
        Some(total) => {
            let message = format!("/dev/shm has {} MiB; NCCL may need a GiB between GPUs", total >> 20);
            Finding::warn("shm", message, advice)
        }
        None if uses_gpus => {
            Finding::warn("shm", "there is no /dev/shm, which NCCL needs between GPUs", advice)
        }
        None => Finding::ok("shm", "there is no /dev/shm (NCCL alone needs it)"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn a_full_disk_fails_and_a_small_one_is_warned_of() {
        let judged = |free, free_files| {
            judge_disk(Path::new("/d"), Room { total: 100 * GIB, free, free_files, counts_files: true }).level
        };
        assert_eq!(judged(6 * GIB, 1), Level::Ok);
        assert_eq!(judged(4 * GIB, 1), Level::Warn);
        assert_eq!(judged(1 << 20, 1), Level::Fail);
        assert_eq!(judged(6 * GIB, 0), Level::Fail);
        assert!(disk(Path::new("/nowhere/at/all")).message.contains("GiB free"));
    }

    #[test]
    fn few_descriptors_are_warned_of() {
        assert_eq!(judge_descriptors(1 << 20).level, Level::Ok);
        let few = judge_descriptors(1024);
        assert!(few.level == Level::Warn && few.message.contains("640 connections"), "{few:?}");
    }

    #[tokio::test]
    async fn a_port_in_use_fails_unless_a_coordinator_has_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(port(address, false).await.level, Level::Fail);
        assert_eq!(port(address, true).await.level, Level::Ok);
        drop(listener);
        assert_eq!(port(address, false).await.level, Level::Ok);
        let foreign = port("192.0.2.1:7070".parse().unwrap(), false).await;
        assert!(
            foreign.level == Level::Fail && foreign.message.contains("no address of this machine"),
            "{foreign:?}"
        );
        let denied = judge_port(address, Err(ErrorKind::PermissionDenied.into()), false);
        assert_eq!(denied.level, Level::Fail);
    }

    #[test]
    fn shared_memory_matters_to_gpus() {
        for (total, uses_gpus, level) in [
            (Some(64 << 20), true, Level::Warn),
            (Some(64 << 20), false, Level::Ok),
            (Some(8 * GIB), true, Level::Ok),
            (None, true, Level::Warn),
            (None, false, Level::Ok),
        ] {
            assert_eq!(judge_shared_memory(total, uses_gpus).level, level, "{total:?}");
        }
    }
}
