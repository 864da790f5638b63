//! Many power cuts: lives of stores, cut at chosen operations, opened again, and lived on from there.
//!
//! A **chain** begins with an empty directory. Each of its **links** is a life recorded from the opening of the store to its
//! closing; the next link begins with what a power cut left of the one before, so that recovering is cut as well. A **point**
//! is one cut: an operation, a model of the directory, and what is lost. Everything follows from the seed, the number of the
//! chain, of the link and of the point.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tidegate_sqlite::{Copying, Synchronous, Tuning};
use tokio::runtime::Runtime;

use crate::disk::{Disk, Entries, Image, Loss, Op};
use crate::shim::{Calls, Fault, Recording};
use crate::verify::{Depth, Expected, Harm, Violation, verify};
use crate::workload::{self, Backup, Life, Plan, Step, live};

/// What a campaign does.
#[derive(Debug, Clone)]
pub struct Settings {
    /// From which everything follows.
    pub seed: u64,
    /// What commits wait for.
    pub synchronous: Synchronous,
    /// How often a store is cut and lived on.
    pub links: u32,
    /// How many calls a life has.
    pub calls: u32,
    /// How many cuts of each life.
    pub points: u32,
    /// How many cuts of each life in which a sync or a write failed.
    pub failing_points: u32,
    /// Where an image that broke a promise is kept.
    pub keep: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 1,
            synchronous: Synchronous::Full,
            links: 4,
            calls: 70,
            points: 110,
            failing_points: 15,
            keep: None,
        }
    }
}

impl Settings {
    /// Small logs: they begin anew every few dozen commits. They are copied beside the writer or by it, so that the end of a
    /// copy meets both; the writer waits, because the same seed has to do the same operations.
    fn tuning(&self, seed: u64) -> Tuning {
        let copying = if seed.is_multiple_of(2) { Copying::Here } else { Copying::BesideAndWaitedFor };
        Tuning { synchronous: self.synchronous, checkpoint: 96 << 10, restart: 256 << 10, retry: 64 << 10, copying }
    }
}

/// What was done and found, over all chains.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Power cuts.
    pub points: u64,
    /// Of them, images that differ from all others of their life.
    pub distinct: u64,
    /// Cuts at which something was not durable yet.
    pub at_risk: u64,
    /// Cuts after which the doctor looked and the store was worked with.
    pub deep: u64,
    /// Cuts of lives in which a sync or a write failed.
    pub after_an_error: u64,
    /// By the model of the directory.
    pub by_entries: BTreeMap<String, u64>,
    /// By what was lost.
    pub by_loss: BTreeMap<String, u64>,
    /// Lives recorded.
    pub lives: u64,
    /// Lives that began with what a power cut had left.
    pub recoveries: u64,
    /// Lives that began with a restored backup.
    pub restores: u64,
    /// Calls answered in them.
    pub calls: u64,
    /// Operations recorded.
    pub operations: u64,
    /// Of them, syncs.
    pub syncs: u64,
    /// How often a log began, or began anew.
    pub log_starts: u64,
    /// Injected errors.
    pub errors: u64,
    /// By harm.
    pub violations: BTreeMap<Harm, u64>,
    /// The first of them.
    pub found: Vec<Found>,
}

/// A promise that was broken, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The seed of the campaign.
    pub seed: u64,
    /// The chain.
    pub chain: u64,
    /// The link of the chain.
    pub link: u32,
    /// The cut.
    pub point: u32,
    /// After which operation, under which model, with which loss; or what came before any cut.
    pub cut: String,
    /// What was wrong.
    pub violation: Violation,
}

/// So many are told.
const TOLD: usize = 20;

impl Totals {
    /// How many promises were broken.
    #[must_use]
    pub fn broken(&self) -> u64 {
        self.violations.values().sum()
    }
}

/// A life on its disk.
#[derive(Debug)]
struct Recorded {
    ops: Vec<Op>,
    life: Life,
    failed_at: Option<usize>,
}

/// Runs campaigns in a directory that is gone afterwards, in memory where the system has such a place.
#[derive(Debug)]
pub struct Campaign {
    settings: Settings,
    place: TempDir,
    runtime: Runtime,
    /// What was done and found so far.
    pub totals: Totals,
}

impl Campaign {
    /// A campaign that goes on from what was done before.
    ///
    /// # Errors
    /// When no directory can be made.
    pub fn new(settings: Settings, totals: Totals) -> std::io::Result<Self> {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        Ok(Self { settings, place, runtime, totals })
    }

    /// Runs one chain.
    pub fn chain(&mut self, chain: u64) {
        let mut base = Base { image: Image::default(), step: None, restored: false };
        for link in 0..self.settings.links {
            let at = At { chain, link };
            match self.link(at, &base) {
                Ok(Some(next)) => base = next,
                Ok(None) => return,
                Err(what) => {
                    // Wrong before any cut: a defect of the engine or of this harness.
                    let violation = Violation { harm: Harm::Half, what };
                    self.broken(at, 0, "no cut".into(), violation, &base.image);
                    return;
                }
            }
        }
    }

    /// What the first life of a chain does to its files, without the contents: the same for the same seed.
    ///
    /// # Errors
    /// As a chain that is broken before any cut.
    pub fn operations(&self, chain: u64) -> Result<Vec<String>, String> {
        let base = Base { image: Image::default(), step: None, restored: false };
        let recorded = self.record(&base, At { chain, link: 0 }.seed(self.settings.seed, u64::MAX), None)?;
        Ok(recorded.ops.iter().map(Op::shape).collect())
    }

    fn link(&mut self, at: At, base: &Base) -> Result<Option<Base>, String> {
        let seed = at.seed(self.settings.seed, u64::MAX);
        let recorded = self.record(base, seed, None)?;
        self.count(&recorded, base);
        let steps = base.with(&recorded.life.steps);
        let cuts = self.cuts(at, 0..self.settings.points, 0, recorded.ops.len());
        self.cut(at, base, &recorded.ops, &steps, &steps, cuts);
        if self.settings.failing_points > 0 && base.step.is_some() {
            self.failing(at, base, seed, &steps)?;
        }
        Ok(self.next(at, base, &recorded.ops, &steps))
    }

    /// The same life again, but a call to the system fails in it.
    fn failing(&mut self, at: At, base: &Base, seed: u64, steps: &[Step]) -> Result<(), String> {
        let mut random = ChaCha8Rng::seed_from_u64(at.seed(self.settings.seed, u64::MAX - 1));
        let fault = Fault {
            calls: [Calls::Syncs, Calls::Syncs, Calls::Writes][random.random_range(0..3)],
            after: random.random_range(0..120),
            lasting: random.random_bool(0.3),
        };
        let recorded = self.record(base, seed, Some(fault))?;
        let Some(failed_at) = recorded.failed_at else { return Ok(()) };
        self.totals.errors += 1;
        if let Some(failed) = &recorded.life.failed
            && failed.by_the_writer
        {
            if !failed.stopped {
                return Err(format!("after {fault:?} in {} ({}) the store went on", failed.what, failed.error));
            }
            // The store knows of what failed in this call: not of an error in tidying up an earlier time it was closed, nor of a
            // directory that was not synced, which SQLite keeps to itself.
            let after = &recorded.ops[failed_at.max(failed.begun)..];
            let known = after.iter().position(|op| matches!(op, Op::SyncFailed { .. }));
            let after = &after[known.map_or(0, |failed| failed + 1)..];
            // Giving up the reserve is no use of the store.
            let reserve = format!("{}-reserve", workload::STORE);
            let went_on = after
                .iter()
                .filter(|op| op.changes() && !matches!(op, Op::Unlink { name } if *name == reserve))
                .count();
            let retried = after.iter().any(|op| !op.changes());
            if went_on > 0 || retried {
                return Err(format!(
                    "after {fault:?} in {} the store still changed its files: {:?}",
                    failed.what,
                    after.iter().map(Op::shape).collect::<Vec<_>>()
                ));
            }
        }
        let faulty = base.with(&recorded.life.steps);
        for (step, same) in faulty.iter().zip(steps) {
            if step.digest != same.digest {
                return Err(format!("the same seed came to another {}", step.what));
            }
        }
        let (from, to) = (self.settings.points, self.settings.points + self.settings.failing_points);
        let cuts = self.cuts(at, from..to, failed_at, recorded.ops.len());
        self.totals.after_an_error += u64::from(self.settings.failing_points);
        // What the failed call may have come to is what it came to in the other life; but no two backups are the same.
        let mut may_be = faulty.clone();
        let backups = faulty.last().map(|step| step.book.backups.clone()).unwrap_or_default();
        if let Some(step) = steps.get(faulty.len()) {
            may_be.push(Step { book: Arc::new(step.book.with_backups(backups)), ..step.clone() });
        }
        self.cut(at, base, &recorded.ops, &faulty, &may_be, cuts);
        Ok(())
    }

    fn record(&self, base: &Base, seed: u64, fault: Option<Fault>) -> Result<Recorded, String> {
        let directory = TempDir::new_in(self.place.path()).map_err(|e| format!("no directory for a life: {e}"))?;
        let path = fs::canonicalize(directory.path()).map_err(|e| format!("no directory for a life: {e}"))?;
        base.image.write(&path).map_err(|e| format!("the disk cannot be prepared: {e}"))?;
        let mut disk = Disk::of(&base.image);
        let book = base.step.as_ref().map(|step| Arc::clone(&step.book)).unwrap_or_default();
        let plan = Plan {
            directory: path.clone(),
            seed,
            calls: self.settings.calls,
            tuning: self.settings.tuning(seed),
            book: Arc::new(book.apart()),
            restored: base.restored,
        };
        let recording = Recording::start(&path, disk.names());
        if let Some(fault) = fault {
            recording.fail(fault);
        }
        let life = live(&plan, &recording, &self.runtime);
        let failed_at = recording.failed_at();
        let ops = recording.finish();
        let life = life?;
        ops.iter().for_each(|op| disk.apply(op));
        let differences = disk.differences(&path).map_err(|e| format!("the disk cannot be read: {e}"))?;
        if let Some(difference) = differences.first() {
            return Err(format!("the recording is not complete: {difference}"));
        }
        match &life.failed {
            Some(failed) if failed_at.is_none() => Err(format!("{}: {}", failed.what, failed.error)),
            Some(_) | None => Ok(Recorded { ops, life, failed_at }),
        }
    }

    fn count(&mut self, recorded: &Recorded, base: &Base) {
        let totals = &mut self.totals;
        totals.lives += 1;
        totals.recoveries += u64::from(!base.image.0.is_empty());
        totals.restores += u64::from(base.step.as_ref().is_some_and(|step| step.what == "restored"));
        totals.calls += recorded.life.steps.len() as u64;
        totals.operations += recorded.ops.len() as u64;
        for op in &recorded.ops {
            match op {
                Op::Sync { .. } | Op::SyncDirectory => totals.syncs += 1,
                // A log begins with a header of this size, and nothing else of SQLite is written so.
                Op::Write { at: 0, bytes, .. } if bytes.len() == 32 => totals.log_starts += 1,
                Op::Write { .. }
                | Op::Create { .. }
                | Op::Truncate { .. }
                | Op::SyncFailed { .. }
                | Op::DirectorySyncFailed
                | Op::Link { .. }
                | Op::Rename { .. }
                | Op::Unlink { .. } => {}
            }
        }
    }

    /// The cuts of a life, in the order of its operations.
    fn cuts(&self, at: At, points: std::ops::Range<u32>, from: usize, to: usize) -> Vec<Cut> {
        let mut cuts: Vec<Cut> = points
            .map(|point| {
                let mut random = ChaCha8Rng::seed_from_u64(at.seed(self.settings.seed, u64::from(point)));
                let after = random.random_range(from..=to);
                let entries = if random.random_bool(0.5) { Entries::Strict } else { Entries::Journalled };
                let loss = Loss::ALL[random.random_range(0..Loss::ALL.len())];
                let depth = match point % 8 {
                    0 => Depth::Doctor,
                    4 => Depth::Messages,
                    _ => Depth::Rows,
                };
                Cut { point, after, entries, loss, depth, random }
            })
            .collect();
        cuts.sort_by_key(|cut| cut.after);
        cuts
    }

    /// Cuts a life and opens what is left. `told` has the answers as they were given, `steps` what may be found.
    fn cut(&mut self, at: At, base: &Base, ops: &[Op], told: &[Step], steps: &[Step], cuts: Vec<Cut>) {
        let mut disk = Disk::of(&base.image);
        let mut seen = HashSet::new();
        let mut done = 0;
        for mut cut in cuts {
            ops[done..cut.after].iter().for_each(|op| disk.apply(op));
            done = cut.after;
            let image = disk.cut(cut.entries, cut.loss, &mut cut.random);
            let totals = &mut self.totals;
            totals.points += 1;
            totals.at_risk += u64::from(disk.at_risk());
            totals.distinct += u64::from(seen.insert(image.number()));
            totals.deep += u64::from(cut.depth == Depth::Doctor);
            *totals.by_entries.entry(word(cut.entries)).or_default() += 1;
            *totals.by_loss.entry(word(cut.loss)).or_default() += 1;
            let expected = expected(told, steps, cut.after);
            // The log's index is memory: after a cut there may be anything in its file.
            let with_stale_index = cut.random.random_bool(0.125);
            let checked = self.check(&image, expected, cut.depth, with_stale_index);
            if let Err(violation) = checked {
                let what = format!("after operation {} of {}: {:?}, {:?}", cut.after, ops.len(), cut.entries, cut.loss);
                self.broken(at, cut.point, what, violation, &image);
            }
        }
    }

    fn check(
        &self,
        image: &Image,
        expected: Expected<'_>,
        depth: Depth,
        with_stale_index: bool,
    ) -> Result<Option<usize>, Violation> {
        let failed =
            |e: std::io::Error| Violation { harm: Harm::Half, what: format!("no directory for an image: {e}") };
        let directory = TempDir::new_in(self.place.path()).map_err(failed)?;
        if with_stale_index && image.0.contains_key(workload::STORE) {
            let stale = directory.path().join(format!("{}-shm", workload::STORE));
            fs::write(stale, vec![0xa5; 32 << 10]).map_err(failed)?;
        }
        verify(image, expected, directory.path(), depth, &self.runtime)
    }

    fn broken(&mut self, at: At, point: u32, cut: String, violation: Violation, image: &Image) {
        *self.totals.violations.entry(violation.harm).or_default() += 1;
        if self.totals.found.len() >= TOLD {
            return;
        }
        let At { chain, link } = at;
        if let Some(keep) = &self.settings.keep {
            let directory = keep.join(format!("{}-{chain}-{link}-{point}", self.settings.seed));
            // What cannot be kept is told all the same.
            let _kept = fs::create_dir_all(&directory).and_then(|()| image.write(&directory));
        }
        self.totals.found.push(Found { seed: self.settings.seed, chain, link, point, cut, violation });
    }

    /// What a cut left of this life, to live on from; or a backup of it, restored.
    fn next(&self, at: At, base: &Base, ops: &[Op], steps: &[Step]) -> Option<Base> {
        let mut random = ChaCha8Rng::seed_from_u64(at.seed(self.settings.seed, u64::MAX - 2));
        let opened = steps.first().map_or(0, |step| step.answered);
        let after = if base.step.is_none() && random.random_bool(0.3) {
            // While the store is being made.
            random.random_range(1..opened.max(2))
        } else {
            // Late enough that there is a store, and something in it.
            let earliest = steps.get(steps.len() / 3).map_or(ops.len(), |step| step.answered).min(ops.len());
            random.random_range(earliest..=ops.len())
        };
        let mut disk = Disk::of(&base.image);
        ops[..after].iter().for_each(|op| disk.apply(op));
        let loss = [Loss::Tail, Loss::Some, Loss::Torn][random.random_range(0..3)];
        let image = disk.cut(Entries::Strict, loss, &mut random);
        let Some(found) = self.check(&image, expected(steps, steps, after), Depth::Rows, false).ok()? else {
            return Some(Base { image, step: None, restored: false });
        };
        let book = &steps[found].book;
        if let Some(backup) = book.backups.values().next_back().filter(|_| random.random_bool(0.4)) {
            return self.restored(backup);
        }
        let step = Step { begun: 0, answered: 0, ..steps[found].clone() };
        Some(Base { image, step: Some(step), restored: base.restored })
    }

    /// A disk with nothing on it but a backup under the name of the store.
    fn restored(&self, backup: &Backup) -> Option<Base> {
        let image = Image([(workload::STORE.to_owned(), backup.content.to_vec())].into());
        let directory = TempDir::new_in(self.place.path()).ok()?;
        image.write(directory.path()).ok()?;
        let digest = rusqlite::Connection::open(directory.path().join(workload::STORE))
            .and_then(|conn| workload::digest(&conn))
            .ok()?;
        let (book, digest) = (Arc::clone(&backup.book), Arc::new(digest));
        let step = Step { what: "restored", begun: 0, answered: 0, book, digest };
        Some(Base { image, step: Some(step), restored: true })
    }
}

/// What may be found after so many operations.
fn expected<'a>(told: &[Step], steps: &'a [Step], after: usize) -> Expected<'a> {
    let answered = told.iter().take_while(|step| step.answered <= after).count();
    // One call at a time: what had begun is what was answered, and at most one more.
    let under_way = told.get(answered).map_or(told.len() < steps.len(), |step| step.begun <= after);
    let begun = (answered + usize::from(under_way)).min(steps.len());
    Expected { steps, answered, begun }
}

fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => format!("{other:?}"),
    }
}

/// Where a campaign is.
#[derive(Debug, Clone, Copy)]
struct At {
    chain: u64,
    link: u32,
}

impl At {
    /// A seed for one use at this place.
    fn seed(self, seed: u64, purpose: u64) -> u64 {
        // Above every number of a chain: or else two seeds would have the same chains, in another order.
        let mut mixed = (seed.wrapping_sub(1) << 32) ^ 1;
        for part in [self.chain, u64::from(self.link), purpose] {
            mixed = (mixed ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed ^= mixed >> 29;
        }
        mixed
    }
}

/// A cut to be made.
#[derive(Debug)]
struct Cut {
    point: u32,
    after: usize,
    entries: Entries,
    loss: Loss,
    depth: Depth,
    random: ChaCha8Rng,
}

/// What a life begins with: an empty directory, or what a cut left.
#[derive(Debug)]
struct Base {
    image: Image,
    step: Option<Step>,
    /// It came out of a backup, once.
    restored: bool,
}

impl Base {
    /// What may be found: what was there before, then each step.
    fn with(&self, steps: &[Step]) -> Vec<Step> {
        self.step.iter().chain(steps).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_chain_of_one_seed_is_one_of_another() {
        let seeds = 1..9_u64;
        let chains = seeds.flat_map(|seed| (0..500).map(move |chain| At { chain, link: 0 }.seed(seed, u64::MAX)));
        assert_eq!(chains.collect::<HashSet<_>>().len(), 8 * 500);
    }
}
