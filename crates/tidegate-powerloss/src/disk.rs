//! What a disk may hold after a power cut, worked out from what was written and what was synced.
//!
//! A file's data and a directory's entries are two things. Data is durable after a sync of the file; until then any part of
//! it may be there, down to single sectors, whatever the order of the writes. An entry (a name made, linked, renamed or
//! removed) is durable after a sync of the directory; see [`Entries`] for what a file's own sync does. A sync of a file
//! that failed makes nothing durable, and neither does a later one that succeeds: the kernel has dropped what it could not
//! write.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::io;
use std::path::Path;

use rand::{Rng as _, RngExt as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// The unit that a disk writes whole or not at all.
pub const SECTOR: usize = 512;

/// A file by identity, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// One recorded operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A file was made.
    Create {
        /// Its name.
        name: String,
        /// The file.
        file: FileId,
    },
    /// Bytes were written.
    Write {
        /// Into which file.
        file: FileId,
        /// From where on.
        at: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// A file got another length.
    Truncate {
        /// Which file.
        file: FileId,
        /// Its length now.
        length: u64,
    },
    /// `fsync` or `fdatasync` of a file: its data and length are durable.
    Sync {
        /// Which file.
        file: FileId,
    },
    /// A sync of a file that failed.
    SyncFailed {
        /// Which file.
        file: FileId,
    },
    /// A sync of the directory.
    SyncDirectory,
    /// A sync of the directory that failed.
    DirectorySyncFailed,
    /// A file got one more name.
    Link {
        /// The new name.
        name: String,
        /// The file.
        file: FileId,
    },
    /// A name became another one's, replacing what had it.
    Rename {
        /// The old name.
        from: String,
        /// The new name.
        to: String,
    },
    /// A name was removed.
    Unlink {
        /// Which.
        name: String,
    },
}

impl Op {
    /// Where and how much, without the content: what two runs of one seed have in common.
    #[must_use]
    pub fn shape(&self) -> String {
        match self {
            Self::Write { file, at, bytes } => format!("write {} {at} {}", file.0, bytes.len()),
            Self::Create { .. }
            | Self::Truncate { .. }
            | Self::Sync { .. }
            | Self::SyncFailed { .. }
            | Self::SyncDirectory
            | Self::DirectorySyncFailed
            | Self::Link { .. }
            | Self::Rename { .. }
            | Self::Unlink { .. } => format!("{self:?}"),
        }
    }

    /// Whether it changes anything, as opposed to a sync.
    #[must_use]
    pub fn changes(&self) -> bool {
        match self {
            Self::Create { .. }
            | Self::Write { .. }
            | Self::Truncate { .. }
            | Self::Link { .. }
            | Self::Rename { .. }
            | Self::Unlink { .. } => true,
            Self::Sync { .. } | Self::SyncFailed { .. } | Self::SyncDirectory | Self::DirectorySyncFailed => false,
        }
    }
}

/// What makes a directory's entries durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Entries {
    /// Only a sync of the directory, as POSIX has it; until then each name may be as it was at any moment since.
    Strict,
    /// The file system's journal, as ext4 and XFS have it: changes of entries become durable in their order, and a sync of
    /// any file takes all that came before it along.
    Journalled,
}

/// What is lost of that which was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// All of it.
    Everything,
    /// None: the disk was quick.
    Nothing,
    /// All after some moment: the disk kept the order.
    Tail,
    /// All before some moment: later writes arrived, earlier ones did not.
    Head,
    /// One write.
    One,
    /// All but one write.
    AllButOne,
    /// Each write or not, independently.
    Some,
    /// Each sector of each write or not: writes are torn.
    Torn,
}

impl Loss {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Everything, Self::Nothing, Self::Tail, Self::Head, Self::One, Self::AllButOne, Self::Some, Self::Torn];
}

/// What a disk is found to hold after a power cut: contents by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image(pub BTreeMap<String, Vec<u8>>);

impl Image {
    /// Writes it into an empty directory.
    ///
    /// # Errors
    /// Those of the directory.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        self.0.iter().try_for_each(|(name, content)| fs::write(directory.join(name), content))
    }

    /// Two images with the same number are the same.
    #[must_use]
    pub fn number(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (name, content) in &self.0 {
            hasher.write(name.as_bytes());
            hasher.write_usize(content.len());
            hasher.write(content);
        }
        hasher.finish()
    }
}

#[derive(Debug, Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Debug, Clone)]
struct Pending<T> {
    change: T,
    /// The number of the operation.
    when: usize,
    /// It is durable, but something before it is not.
    durable: bool,
    /// A sync that was to make it durable failed: no later one does.
    orphan: bool,
}

#[derive(Debug, Clone, Default)]
struct File {
    durable: Vec<u8>,
    pending: Vec<Pending<Change>>,
}

impl File {
    fn sync(&mut self) {
        for pending in self.pending.iter_mut().filter(|pending| !pending.orphan) {
            pending.durable = true;
        }
        let settled = self.pending.iter().take_while(|pending| pending.durable).count();
        for pending in self.pending.drain(..settled) {
            apply(&mut self.durable, &pending.change);
        }
    }

    fn live(&self) -> Vec<u8> {
        let mut content = self.durable.clone();
        self.pending.iter().for_each(|pending| apply(&mut content, &pending.change));
        content
    }
}

fn apply(content: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { at, bytes } => put(content, *at, bytes),
        Change::Length(length) => content.resize(*length, 0),
    }
}

fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[at..end].copy_from_slice(bytes);
}

#[derive(Debug, Clone)]
enum Naming {
    Name(String, FileId),
    Rename(String, String),
    Unname(String),
}

impl Naming {
    fn names(&self) -> impl Iterator<Item = &String> {
        let (first, second) = match self {
            Self::Name(name, _) | Self::Unname(name) => (name, None),
            Self::Rename(from, to) => (from, Some(to)),
        };
        [Some(first), second].into_iter().flatten()
    }
}

type Names = BTreeMap<String, FileId>;

fn name(names: &mut Names, naming: &Naming) {
    match naming {
        Naming::Name(name, file) => drop(names.insert(name.clone(), *file)),
        Naming::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Naming::Unname(name) => drop(names.remove(name)),
    }
}

#[derive(Debug, Clone, Default)]
struct Directory {
    durable: Names,
    pending: Vec<Pending<Naming>>,
}

impl Directory {
    fn sync(&mut self) {
        for pending in self.pending.iter_mut().filter(|pending| !pending.orphan) {
            pending.durable = true;
        }
        let settled = self.pending.iter().take_while(|pending| pending.durable).count();
        for pending in self.pending.drain(..settled) {
            name(&mut self.durable, &pending.change);
        }
    }

    fn live(&self) -> Names {
        let mut names = self.durable.clone();
        self.pending.iter().for_each(|pending| name(&mut names, &pending.change));
        names
    }
}

/// A disk with one directory: what is durable, and what is not yet.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    files: BTreeMap<FileId, File>,
    strict: Directory,
    journalled: Directory,
    applied: usize,
}

impl Disk {
    /// A disk that holds this, durably: what was found after a power cut stays.
    #[must_use]
    pub fn of(image: &Image) -> Self {
        let mut disk = Self::default();
        for (number, (name, content)) in (0..).zip(&image.0) {
            let file = FileId(number);
            disk.files.insert(file, File { durable: content.clone(), pending: Vec::new() });
            disk.strict.durable.insert(name.clone(), file);
        }
        disk.journalled = disk.strict.clone();
        disk
    }

    /// The files by name, as the running programs see them.
    #[must_use]
    pub fn names(&self) -> BTreeMap<String, FileId> {
        self.strict.live()
    }

    /// Goes one operation further.
    pub fn apply(&mut self, op: &Op) {
        let when = self.applied;
        self.applied += 1;
        match op {
            Op::Create { name, file } => {
                self.files.insert(*file, File::default());
                self.name(when, Naming::Name(name.clone(), *file));
            }
            Op::Link { name, file } => self.name(when, Naming::Name(name.clone(), *file)),
            Op::Rename { from, to } => self.name(when, Naming::Rename(from.clone(), to.clone())),
            Op::Unlink { name } => self.name(when, Naming::Unname(name.clone())),
            Op::Write { file, at, bytes } => {
                self.change(when, *file, Change::Write { at: index(*at), bytes: bytes.clone() });
            }
            Op::Truncate { file, length } => self.change(when, *file, Change::Length(index(*length))),
            Op::Sync { file } => {
                self.files.entry(*file).or_default().sync();
                self.journalled.sync();
            }
            Op::SyncDirectory => {
                self.strict.sync();
                self.journalled.sync();
            }
            Op::SyncFailed { file } => {
                let pending = &mut self.files.entry(*file).or_default().pending;
                pending.iter_mut().for_each(|pending| pending.orphan = true);
            }
            // Entries are in the file system's journal: one that cannot be written fails every later sync as well, so a later
            // sync that succeeds has written them.
            Op::DirectorySyncFailed => {}
        }
    }

    fn change(&mut self, when: usize, file: FileId, change: Change) {
        let pending = Pending { change, when, durable: false, orphan: false };
        self.files.entry(file).or_default().pending.push(pending);
    }

    fn name(&mut self, when: usize, naming: Naming) {
        let pending = Pending { change: naming, when, durable: false, orphan: false };
        self.strict.pending.push(pending.clone());
        self.journalled.pending.push(pending);
    }

    /// Whether anything could be lost now.
    #[must_use]
    pub fn at_risk(&self) -> bool {
        !self.strict.pending.is_empty() || self.files.values().any(|file| !file.pending.is_empty())
    }

    /// What a directory really holds that this disk does not, or the other way round; empty when the two agree.
    ///
    /// # Errors
    /// Those of reading the directory.
    pub fn differences(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut recorded: BTreeMap<String, Vec<u8>> =
            self.names().into_iter().map(|(name, file)| (name, self.files[&file].live())).collect();
        let mut found = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with("-shm") {
                continue;
            }
            match recorded.remove(&name) {
                None => found.push(format!("{name} was made unseen")),
                Some(content) if content != fs::read(entry.path())? => found.push(format!("{name} was changed unseen")),
                Some(_) => {}
            }
        }
        found.extend(recorded.into_keys().map(|name| format!("{name} was removed unseen")));
        Ok(found)
    }

    /// What may be found after a power cut now.
    pub fn cut(&self, entries: Entries, loss: Loss, random: &mut ChaCha8Rng) -> Image {
        let whens: Vec<usize> = {
            let data = self.files.values().flat_map(|file| file.pending.iter().map(|pending| pending.when));
            let mut whens: Vec<usize> = data.collect();
            whens.sort_unstable();
            whens
        };
        let pick = |random: &mut ChaCha8Rng| match whens.len() {
            0 => 0,
            many => whens[random.random_range(0..many)],
        };
        let moment = pick(random);
        let chance = [0.1, 0.3, 0.5, 0.7, 0.9][random.random_range(0..5)];
        let names = match entries {
            Entries::Strict => strict_names(&self.strict, loss, random),
            Entries::Journalled => ordered_names(&self.journalled, loss, random),
        };
        let mut contents: HashMap<FileId, Vec<u8>> = HashMap::new();
        // In the order of the files, so that the same choice is made again from the same seed.
        for (id, file) in &self.files {
            if !names.values().any(|named| named == id) {
                continue;
            }
            let mut content = file.durable.clone();
            // Whether the length was written although the data was not.
            let grows = random.random_bool(0.5);
            for pending in &file.pending {
                let kept = pending.durable
                    || match loss {
                        Loss::Everything => false,
                        Loss::Nothing | Loss::Torn => true,
                        Loss::Tail => pending.when < moment,
                        Loss::Head => pending.when >= moment,
                        Loss::One => pending.when != moment,
                        Loss::AllButOne => pending.when == moment,
                        Loss::Some => random.random_bool(chance),
                    };
                match &pending.change {
                    Change::Write { at, bytes } if loss == Loss::Torn && !pending.durable => {
                        tear(&mut content, *at, bytes, chance, grows, random);
                    }
                    // A shortened file is one entry of the file system's journal: it is there or not.
                    Change::Length(_) if loss == Loss::Torn && !pending.durable && !random.random_bool(chance) => {}
                    change if kept => apply(&mut content, change),
                    Change::Write { at, bytes } if grows && loss == Loss::Some => {
                        let end = at + bytes.len();
                        if content.len() < end {
                            content.resize(end, 0);
                        }
                    }
                    Change::Write { .. } | Change::Length(_) => {}
                }
            }
            contents.insert(*id, content);
        }
        let named = names.into_iter().map(|(name, file)| (name, contents.get(&file).cloned().unwrap_or_default()));
        Image(named.collect())
    }
}

fn index(place: u64) -> usize {
    usize::try_from(place).expect("a recorded file fits into memory")
}

/// Writes some sectors of a write: its beginning, its end, or any.
fn tear(content: &mut Vec<u8>, at: usize, bytes: &[u8], chance: f64, grows: bool, random: &mut ChaCha8Rng) {
    let end = at + bytes.len();
    let first = at / SECTOR;
    let sectors = end.div_ceil(SECTOR) - first;
    let cut = random.random_range(0..=sectors);
    let how = random.random_range(0..4);
    for sector in 0..sectors {
        let kept = match how {
            0 => sector < cut,
            1 => sector >= cut,
            2 => random.random_bool(chance),
            _ => random.next_u32() % 8 != 0,
        };
        let from = ((first + sector) * SECTOR).max(at);
        let to = ((first + sector + 1) * SECTOR).min(end);
        if kept {
            put(content, from, &bytes[from - at..to - at]);
        } else if grows && content.len() < to {
            content.resize(to, 0);
        }
    }
}

/// Each name as it was at some moment since the last sync of the directory; names that a rename ties together, together.
fn strict_names(directory: &Directory, loss: Loss, random: &mut ChaCha8Rng) -> Names {
    let mut groups: Vec<(Vec<&String>, Vec<&Pending<Naming>>)> = Vec::new();
    for pending in &directory.pending {
        let (mut tied, others): (Vec<_>, Vec<_>) =
            groups.drain(..).partition(|(names, _)| pending.change.names().any(|name| names.contains(&name)));
        groups = others;
        let mut group: (Vec<&String>, Vec<&Pending<Naming>>) = (pending.change.names().collect(), Vec::new());
        for (names, changes) in &mut tied {
            group.0.append(names);
            group.1.append(changes);
        }
        group.1.push(pending);
        group.1.sort_by_key(|pending| pending.when);
        groups.push(group);
    }
    let mut names = directory.durable.clone();
    for (_, changes) in groups {
        let least = changes.iter().rposition(|pending| pending.durable).map_or(0, |last| last + 1);
        let kept = match loss {
            Loss::Everything => least,
            Loss::Nothing => changes.len(),
            Loss::Tail | Loss::Head | Loss::One | Loss::AllButOne | Loss::Some | Loss::Torn => {
                random.random_range(least..=changes.len())
            }
        };
        changes[..kept].iter().for_each(|pending| name(&mut names, &pending.change));
    }
    names
}

/// All names as they were at one moment since the journal was last written.
fn ordered_names(directory: &Directory, loss: Loss, random: &mut ChaCha8Rng) -> Names {
    let least = directory.pending.iter().rposition(|pending| pending.durable).map_or(0, |last| last + 1);
    let kept = match loss {
        Loss::Everything => least,
        Loss::Nothing => directory.pending.len(),
        Loss::Tail | Loss::Head | Loss::One | Loss::AllButOne | Loss::Some | Loss::Torn => {
            random.random_range(least..=directory.pending.len())
        }
    };
    let mut names = directory.durable.clone();
    directory.pending[..kept].iter().for_each(|pending| name(&mut names, &pending.change));
    names
}
