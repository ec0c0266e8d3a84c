//! Writes the pages of LTX files to a database file.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::error::Error;
use crate::ltx::{Decoder, Header};
use crate::name::Txid;

/// Neighbouring pages are written together.
const WRITE_SIZE: usize = 1 << 20;
/// The disk is told to take what was written after so many bytes, so that the last wait is short.
const SYNC_SIZE: u64 = 32 << 20;

#[derive(Debug)]
pub struct Applier {
    path: PathBuf,
    file: File,
    page_size: Option<u32>,
    header: Option<Header>,
    unsynced: u64,
    syncer: Syncer,
}

impl Applier {
    /// Starts an empty file, whatever is there.
    pub fn new(path: &Path) -> Result<Applier, Error> {
        let opened = OpenOptions::new().write(true).create(true).truncate(true).open(path);
        let file = opened.map_err(|e| Error::write(path, "create", 0, &e))?;
        let syncer = Syncer::start(&file).map_err(|e| Error::local(path, "write", e))?;
        Ok(Applier { path: path.to_path_buf(), file, page_size: None, header: None, unsynced: 0, syncer })
    }

    /// Applies a file wholly, or fails. `range` is what its name says it holds.
    pub fn apply<R: Read>(&mut self, mut decoder: Decoder<R>, range: Option<(Txid, Txid)>) -> Result<(), Error> {
        let header = *decoder.header();
        if range.is_some_and(|range| range != (header.min, header.max)) {
            let reason = format!("it holds transactions {} to {}, not what its name says", header.min, header.max);
            return Err(Error::damaged(decoder.file(), 0, reason));
        }
        if self.page_size.is_some_and(|size| size != header.page_size) || self.header.is_none() && !header.is_snapshot()
        {
            return Err(Error::damaged(decoder.file(), 0, "it does not fit the files before it"));
        }
        self.page_size = Some(header.page_size);
        let page_size = header.page_size as usize;
        let mut buffer = vec![0; WRITE_SIZE.max(page_size)];
        // The buffer's first page and the number of pages in it.
        let (mut first, mut count) = (0_u32, 0_u32);
        loop {
            let filled = count as usize * page_size;
            let Some(number) = decoder.page(&mut buffer[filled..filled + page_size])? else { break };
            if count > 0 && number != first + count {
                self.write(first, &buffer[..filled], header)?;
                buffer.copy_within(filled..filled + page_size, 0);
                count = 0;
            }
            if count == 0 {
                first = number;
            }
            count += 1;
            if (count as usize + 1) * page_size > buffer.len() {
                self.write(first, &buffer[..count as usize * page_size], header)?;
                count = 0;
            }
        }
        if count > 0 {
            self.write(first, &buffer[..count as usize * page_size], header)?;
        }
        let size = size(&header);
        self.file.set_len(size).map_err(|e| Error::write(&self.path, "write", size, &e))?;
        decoder.finish()?;
        self.header = Some(header);
        Ok(())
    }

    /// Makes the file durable.
    pub fn finish(self) -> Result<(), Error> {
        let size = self.header.as_ref().map_or(0, size);
        let synced = self.syncer.end().and_then(|()| self.file.sync_all());
        synced.map_err(|e| Error::write(&self.path, "write", size, &e))
    }

    fn write(&mut self, first: u32, bytes: &[u8], header: Header) -> Result<(), Error> {
        let offset = u64::from(first - 1) * u64::from(header.page_size);
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(|e| Error::write(&self.path, "write", size(&header), &e))?;
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= SYNC_SIZE && self.syncer.ask() {
            self.unsynced = 0;
        }
        Ok(())
    }
}

fn size(header: &Header) -> u64 {
    u64::from(header.commit) * u64::from(header.page_size)
}

/// A thread that waits for the disk while more is decoded.
#[derive(Debug)]
struct Syncer {
    asks: mpsc::SyncSender<()>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Syncer {
    fn start(file: &File) -> std::io::Result<Syncer> {
        let file = file.try_clone()?;
        let (asks, asked) = mpsc::sync_channel(1);
        let run = move || asked.into_iter().try_for_each(|()| file.sync_data());
        let thread = std::thread::Builder::new().name("backup-sync".to_owned()).spawn(run)?;
        Ok(Syncer { asks, thread })
    }

    /// `false` if it is not done with what it was asked before.
    fn ask(&self) -> bool {
        self.asks.try_send(()).is_ok()
    }

    fn end(self) -> std::io::Result<()> {
        drop(self.asks);
        self.thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread that syncs failed")))
    }
}
