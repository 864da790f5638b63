//! Calls to the system that fail while a store is made.

use std::fs;

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use tidegate_powerloss::disk::{Disk, Entries, Loss};
use tidegate_powerloss::shim::{Calls, Fault, Recording};
use tidegate_powerloss::workload::STORE;
use tidegate_sqlite::{Options, SqliteStore};

#[test]
fn whichever_call_of_the_first_opening_fails_the_store_can_be_made_afterwards() {
    let mut tried = 0;
    for after in 0..200 {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let recording = Recording::start(directory.path(), []);
        recording.fail(Fault { calls: Calls::All, after, lasting: false });
        let opened = SqliteStore::open(directory.path().join(STORE), Options::default());
        let failed = recording.failed_at().is_some();
        let refused = opened.as_ref().err().map(ToString::to_string);
        drop(opened);
        let mut disk = Disk::default();
        recording.finish().iter().for_each(|op| disk.apply(op));
        if !failed {
            assert_eq!(refused, None, "nothing failed");
            break;
        }
        tried += 1;
        for loss in [Loss::Everything, Loss::Nothing, Loss::Torn, Loss::Some] {
            let mut random = ChaCha8Rng::seed_from_u64(u64::from(after));
            let image = disk.cut(Entries::Strict, loss, &mut random);
            let found = tempfile::tempdir().expect("a directory can be made");
            image.write(found.path()).expect("it can be written");
            let again = SqliteStore::open(found.path().join(STORE), Options::default());
            let names: Vec<_> = fs::read_dir(found.path()).expect("read").flatten().map(|e| e.file_name()).collect();
            assert!(again.is_ok(), "call {after} failed ({refused:?}), {loss:?}, left {names:?}: {again:?}");
        }
    }
    assert!(tried > 20, "only {tried} calls of an opening were seen");
}
