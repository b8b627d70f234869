//! One run of one simulated node: everything that ends when it is killed.

use std::cell::RefCell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::task::{AbortHandle, JoinHandle};

use super::Universe;
use super::chance::Chance;
use super::plants::Plant;
use crate::replication::error::{StorageError, panic_text};
use crate::units::Millis;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Process>>> = const { RefCell::new(None) };
}

/// The simulated process that this code runs in, if any.
pub(crate) fn current() -> Option<Arc<Process>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Whether this code runs in a simulated process that has this mistake.
pub(crate) fn planted(plant: Plant) -> bool {
    CURRENT
        .with_borrow(|process| process.as_ref().is_some_and(|process| process.universe.plant == Some(plant)))
}

pub(crate) struct Process {
    pub(crate) node: u64,
    pub(crate) universe: Arc<Universe>,
    state: Mutex<State>,
    chance: Mutex<Chance>,
}

#[derive(Default)]
struct State {
    dead: bool,
    stopped: bool,
    tasks: Vec<AbortHandle>,
    /// Who would have run while it was stopped.
    parked: Vec<Waker>,
}

impl Process {
    pub(crate) fn new(node: u64, universe: Arc<Universe>) -> Arc<Process> {
        let chance = Mutex::new(universe.fork());
        Arc::new(Process { node, universe, state: Mutex::default(), chance })
    }

    /// Begins a task of this process.
    pub(crate) fn spawn<F>(self: &Arc<Self>, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let handle = tokio::spawn(Owned { process: self.clone(), future: Some(Box::pin(future)) });
        let mut state = self.state();
        if state.tasks.len() % 256 == 255 {
            state.tasks.retain(|task| !task.is_finished());
        }
        state.tasks.push(handle.abort_handle());
        handle
    }

    /// Ends it at once, as `kill -9` does: nothing of it runs any more when this returns.
    pub(crate) async fn kill(&self) {
        let tasks = {
            let mut state = self.state();
            state.dead = true;
            std::mem::take(&mut state.tasks)
        };
        for task in &tasks {
            task.abort();
        }
        while tasks.iter().any(|task| !task.is_finished()) {
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// Lets it stand still, as `SIGSTOP` does.
    pub(crate) fn stop(&self) {
        self.state().stopped = true;
    }

    pub(crate) fn go_on(&self) {
        let parked = {
            let mut state = self.state();
            state.stopped = false;
            std::mem::take(&mut state.parked)
        };
        parked.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Work that may block, done at one moment, after and before some time that it takes.
    pub(crate) async fn work<T>(
        &self,
        work: impl FnOnce() -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let (before, after) = {
            let mut chance = self.draw();
            (chance.ms(0, 3), chance.ms(0, 3))
        };
        tokio::time::sleep(before).await;
        let done = work();
        tokio::time::sleep(after).await;
        done
    }

    /// What the wall clock of this node's machine shows.
    pub(crate) fn wall_clock(&self) -> Millis {
        self.universe.wall_clock(self.node)
    }

    /// A sequence of its own, for whoever draws by himself.
    pub(crate) fn chance(&self) -> Chance {
        self.draw().fork()
    }

    fn draw(&self) -> MutexGuard<'_, Chance> {
        self.chance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `what` as a part of this process.
    fn within<T>(self: &Arc<Self>, what: impl FnOnce() -> T) -> T {
        let before = CURRENT.replace(Some(self.clone()));
        let done = catch_unwind(AssertUnwindSafe(what));
        CURRENT.set(before);
        done.unwrap_or_else(|panic| {
            let text = panic_text(&*panic);
            if !text.contains(HARMLESS_PANIC) {
                self.universe.violated("nobody_fails", format!("node {} panicked: {text}", self.node));
            }
            resume_unwind(panic)
        })
    }
}

/// An assertion of openraft that only builds with debug assertions make (docs/decisions/0001): a task that sends entries for a
/// leader that was, and whose log was just cut, ends with it instead of a moment later.
const HARMLESS_PANIC: &str = "read_log_entries received reversed range";

/// A task of a process.
struct Owned<F> {
    process: Arc<Process>,
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for Owned<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        {
            let mut state = self.process.state();
            if state.stopped && !state.dead {
                state.parked.push(context.waker().clone());
                return Poll::Pending;
            }
            if state.dead {
                return Poll::Pending;
            }
        }
        let process = self.process.clone();
        let Some(future) = self.future.as_mut() else { return Poll::Pending };
        let polled = process.within(|| future.as_mut().poll(context));
        if polled.is_ready() {
            let done = self.future.take();
            process.within(|| drop(done));
        }
        polled
    }
}

impl<F> Drop for Owned<F> {
    fn drop(&mut self) {
        if let Some(future) = self.future.take() {
            self.process.clone().within(|| drop(future));
        }
    }
}
