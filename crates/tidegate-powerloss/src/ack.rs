//! When exactly a call was answered, in recorded operations.
//!
//! The engine answers from its writer's thread, which then goes on to copy its log into the file. Whoever looks at the
//! recording only when the answer has reached its own thread counts operations as unanswered that came after it. A waker is
//! called on the thread that answers, before anything else happens there: it looks.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use crate::shim;

struct Bell {
    waiting: Thread,
    rung: AtomicBool,
    position: AtomicUsize,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.position.store(shim::position(), Ordering::SeqCst);
        self.rung.store(true, Ordering::SeqCst);
        self.waiting.unpark();
    }
}

/// Runs a call of the store's writer and says how many operations were recorded when it was answered.
pub(crate) fn answered<F: Future>(call: F) -> (F::Output, usize) {
    let bell = Arc::new(Bell {
        waiting: thread::current(),
        rung: AtomicBool::new(false),
        position: AtomicUsize::new(usize::MAX),
    });
    let waker = Waker::from(Arc::clone(&bell));
    let mut context = Context::from_waker(&waker);
    let mut call = pin!(call);
    // Nothing is written before there is somebody to be woken: the answer cannot come unseen.
    let first = shim::hold(|| call.as_mut().poll(&mut context));
    if let Poll::Ready(output) = first {
        return (output, shim::position());
    }
    loop {
        while !bell.rung.swap(false, Ordering::SeqCst) {
            thread::park();
        }
        if let Poll::Ready(output) = call.as_mut().poll(&mut context) {
            return (output, bell.position.load(Ordering::SeqCst));
        }
    }
}
