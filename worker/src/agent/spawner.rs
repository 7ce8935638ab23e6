//! The thread that forks rank processes.
//!
//! A rank asks the kernel to kill it when its parent dies (PR_SET_PDEATHSIG), and the parent is the *thread*
//! that forked it. So all ranks are forked from one thread that lives as long as the agent.

use std::io;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread;

use tokio::sync::oneshot;

struct Request {
    command: Command,
    reply: oneshot::Sender<io::Result<Child>>,
}

/// A handle to the thread; it ends when the handle is dropped.
#[derive(Debug)]
pub(super) struct Spawner {
    requests: mpsc::Sender<Request>,
}

impl Spawner {
    pub(super) fn start() -> io::Result<Self> {
        let (requests, received) = mpsc::channel::<Request>();
        thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            for mut request in received {
                // If the agent is stopping, nobody waits for the reply; the child then dies with this thread.
                let _ = request.reply.send(request.command.spawn());
            }
        })?;
        Ok(Self { requests })
    }

    pub(super) async fn spawn(&self, command: Command) -> io::Result<Child> {
        let (reply, response) = oneshot::channel();
        let gone = || io::Error::other("the spawner thread has ended");
        self.requests.send(Request { command, reply }).map_err(|_| gone())?;
        response.await.map_err(|_| gone())?
    }
}
