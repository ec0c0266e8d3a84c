//! The frames of the change stream, one per binary WebSocket message, and how two nodes agree on their version.
//!
//! A frame is a kind byte and its fields: integers little-endian and of fixed width, text with its length in two bytes, an optional
//! field after a byte 0 or 1. A frame is read to its end: a byte too few or too many is an error, so a changed frame needs a new
//! version. Pages travel as the change log stores them; their encoding has a version of its own.
//!
//! The versions a node speaks are a range. A subscriber sends its range in a header and the lowest in the path; the highest that
//! both speak is used. Raising the range by one while the previous version is still spoken lets nodes be replaced one by one.

use std::ops::RangeInclusive;

use bytes::{BufMut, Bytes, BytesMut};
use rows::Version;

/// What this node speaks.
pub const VERSIONS: RangeInclusive<u16> = 1..=2;
/// From this version on a stream of changes tells when the owner is where upstream was ([`FromOwner::Abreast`]).
pub const TELLS_ABREAST: u16 = 2;
/// Request: the range that a subscriber speaks (`1-2`). Response: the version that was chosen.
pub const VERSIONS_HEADER: &str = "zero-stream-versions";
/// Response: why an upgrade was refused.
pub const ERROR_HEADER: &str = "zero-stream-error";
/// Response to `/livez`: which node answers.
pub const NODE_HEADER: &str = "zero-node";
/// Response to `/livez`: `1` if changes arrive here from Postgres, else `0`.
pub const STREAMS_HEADER: &str = "zero-streams";
/// No frame of a subscriber is longer.
pub const SUBSCRIBER_FRAME_BYTES_MAX: usize = 16 * 1024;
/// No frame of an owner is longer: a page's part or a piece of a snapshot, with its fields.
pub const OWNER_FRAME_BYTES_MAX: usize = 4 << 20;
/// Longer texts are cut when they are written and refused when they are read.
const TEXT_BYTES_MAX: usize = 4096;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a frame of the change stream cannot be read: {0}")]
pub struct FrameError(pub(crate) &'static str);

type Result<T> = std::result::Result<T, FrameError>;

/// The highest version in both ranges.
#[must_use]
pub fn negotiate(ours: &RangeInclusive<u16>, theirs: &RangeInclusive<u16>) -> Option<u16> {
    let highest = *ours.end().min(theirs.end());
    (highest >= *ours.start().max(theirs.start())).then_some(highest)
}

/// `1-2`, or `1` for a single version.
#[must_use]
pub fn parse_versions(text: &str) -> Option<RangeInclusive<u16>> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
    (low <= high).then_some(low..=high)
}

#[must_use]
pub fn print_versions(range: &RangeInclusive<u16>) -> String {
    format!("{}-{}", range.start(), range.end())
}

/// Who subscribes, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub app: String,
    pub shard: u32,
    pub node: String,
    /// The copy that the subscriber's replica descends from; `None` if it has no replica.
    pub replica: Option<Version>,
    /// The last transaction it has.
    pub after: Version,
    /// Bytes that may be on their way to it.
    pub window: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromSubscriber {
    Hello(Hello),
    /// Everything up to `applied` will not be asked for again; `consumed` bytes of frames have been taken out of the window. Also
    /// the subscriber's sign of life.
    Ack {
        applied: Version,
        consumed: u64,
    },
    /// Of a reservation: send the snapshot.
    Fetch,
}

/// A backup that a subscriber can restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Without credentials.
    pub url: String,
    /// What restoring it leads to, at least.
    pub version: Version,
}

/// The answer to a subscriber that is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Fencing token of the owner.
    pub epoch: u64,
    /// The copy that all replicas descend from.
    pub replica: Version,
    /// The log holds what follows this version.
    pub start: Version,
    /// The last version in the log.
    pub head: Version,
    pub backup: Option<Backup>,
    /// Whether a snapshot can be fetched from the owner itself.
    pub has_snapshot: bool,
    pub owner_clock_us: i64,
}

/// Why a subscriber is not accepted, or why its stream ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the change log begins after {start}, which is too new for the subscriber's position")]
    TooOld { start: Version },
    #[error("the change log belongs to the copy of {replica}, the subscriber's replica to another one")]
    OtherReplica { replica: Version },
    #[error("the subscriber is ahead of the change log, which ends at {head}: the log was lost or set back")]
    Ahead { head: Version },
    #[error("the subscriber is of another application or shard than this change stream ({app})")]
    OtherApp { app: String },
    #[error("this node does not own the change log{}", at(owner))]
    NotOwner { owner: String },
    #[error("this node has not started yet")]
    Starting,
    #[error("this node is shutting down")]
    Draining,
    #[error("no progress for too long: {reason}")]
    Stalled { reason: String },
    #[error("the reservation has expired")]
    Expired,
    #[error("this node cannot do it now: {reason}")]
    Busy { reason: String },
    #[error("this node offers no snapshot")]
    NoSnapshot,
    #[error("the peer broke the protocol: {reason}")]
    Protocol { reason: String },
    /// Of a newer peer.
    #[error("refused with code {code}: {reason}")]
    Other { code: u8, reason: String },
}

fn at(owner: &str) -> String {
    if owner.is_empty() { String::new() } else { format!("; the owner is {owner}") }
}

/// One page or a part of one; see [`changes::Page`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageFrame {
    pub first: Version,
    pub last: Version,
    /// Begins a page: what was received of an unfinished one is to be dropped.
    pub is_start: bool,
    pub is_end: bool,
    pub body: Bytes,
}

/// A snapshot that is about to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The copy that it descends from.
    pub replica: Version,
    /// The state it holds.
    pub version: Version,
    /// Its length, if it is known; for showing progress.
    pub bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromOwner {
    Welcome(Welcome),
    Refused(Refusal),
    Page(PageFrame),
    /// Where the log ends; also the owner's sign of life.
    Head {
        head: Version,
        owner_clock_us: i64,
    },
    /// The log holds, up to `version`, all that upstream had when the owner was connected to it. Told once in a stream of changes:
    /// at its begin, or when it is so. Whoever has applied this is not behind.
    Abreast {
        version: Version,
    },
    SnapshotStart(SnapshotInfo),
    SnapshotData(Bytes),
    /// The snapshot is complete: so many bytes were sent.
    SnapshotEnd {
        bytes: u64,
    },
}

mod kind {
    pub const HELLO: u8 = 0x01;
    pub const ACK: u8 = 0x02;
    pub const FETCH: u8 = 0x03;
    pub const WELCOME: u8 = 0x81;
    pub const REFUSED: u8 = 0x82;
    pub const PAGE: u8 = 0x83;
    pub const HEAD: u8 = 0x84;
    pub const SNAPSHOT_START: u8 = 0x85;
    pub const SNAPSHOT_DATA: u8 = 0x86;
    pub const SNAPSHOT_END: u8 = 0x87;
    pub const ABREAST: u8 = 0x88;
}

const PAGE_START: u8 = 1;
const PAGE_END: u8 = 2;

impl FromSubscriber {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            FromSubscriber::Hello(hello) => {
                out.put_u8(kind::HELLO);
                put_text(&mut out, &hello.app);
                out.put_u32_le(hello.shard);
                put_text(&mut out, &hello.node);
                put_option(&mut out, hello.replica.map(Version::as_u64));
                out.put_u64_le(hello.after.as_u64());
                out.put_u64_le(hello.window);
            }
            FromSubscriber::Ack { applied, consumed } => {
                out.put_u8(kind::ACK);
                out.put_u64_le(applied.as_u64());
                out.put_u64_le(*consumed);
            }
            FromSubscriber::Fetch => out.put_u8(kind::FETCH),
        }
        out.freeze()
    }

    pub fn decode(frame: Bytes) -> Result<FromSubscriber> {
        let mut fields = Fields(frame);
        let decoded = match fields.u8()? {
            kind::HELLO => FromSubscriber::Hello(Hello {
                app: fields.text()?,
                shard: fields.u32()?,
                node: fields.text()?,
                replica: fields.option()?.map(Version::new),
                after: fields.version()?,
                window: fields.u64()?,
            }),
            kind::ACK => FromSubscriber::Ack { applied: fields.version()?, consumed: fields.u64()? },
            kind::FETCH => FromSubscriber::Fetch,
            _ => return Err(FrameError("its kind is unknown")),
        };
        fields.end()?;
        Ok(decoded)
    }
}

impl FromOwner {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            FromOwner::Welcome(welcome) => {
                out.put_u8(kind::WELCOME);
                out.put_u64_le(welcome.epoch);
                out.put_u64_le(welcome.replica.as_u64());
                out.put_u64_le(welcome.start.as_u64());
                out.put_u64_le(welcome.head.as_u64());
                put_option(&mut out, welcome.backup.as_ref().map(|backup| backup.version.as_u64()));
                if let Some(backup) = &welcome.backup {
                    put_text(&mut out, &backup.url);
                }
                out.put_u8(u8::from(welcome.has_snapshot));
                out.put_i64_le(welcome.owner_clock_us);
            }
            FromOwner::Refused(refusal) => {
                out.put_u8(kind::REFUSED);
                let (code, number, text) = refusal.to_code();
                out.put_u8(code);
                out.put_u64_le(number.as_u64());
                put_text(&mut out, text);
            }
            FromOwner::Page(page) => return page_frame(page.first, page.last, page.is_start, page.is_end, &page.body),
            FromOwner::Head { head, owner_clock_us } => {
                out.put_u8(kind::HEAD);
                out.put_u64_le(head.as_u64());
                out.put_i64_le(*owner_clock_us);
            }
            FromOwner::Abreast { version } => {
                out.put_u8(kind::ABREAST);
                out.put_u64_le(version.as_u64());
            }
            FromOwner::SnapshotStart(info) => {
                out.put_u8(kind::SNAPSHOT_START);
                out.put_u64_le(info.replica.as_u64());
                out.put_u64_le(info.version.as_u64());
                put_option(&mut out, info.bytes);
            }
            FromOwner::SnapshotData(bytes) => {
                out.reserve(bytes.len() + 1);
                out.put_u8(kind::SNAPSHOT_DATA);
                out.put_slice(bytes);
            }
            FromOwner::SnapshotEnd { bytes } => {
                out.put_u8(kind::SNAPSHOT_END);
                out.put_u64_le(*bytes);
            }
        }
        out.freeze()
    }

    /// Bodies are parts of `frame`, not copies.
    pub fn decode(frame: Bytes) -> Result<FromOwner> {
        let mut fields = Fields(frame);
        let decoded = match fields.u8()? {
            kind::WELCOME => {
                let (epoch, replica) = (fields.u64()?, fields.version()?);
                let (start, head) = (fields.version()?, fields.version()?);
                let backup = match fields.option()? {
                    Some(version) => Some(Backup { version: Version::new(version), url: fields.text()? }),
                    None => None,
                };
                let (has_snapshot, owner_clock_us) = (fields.flag()?, fields.i64()?);
                FromOwner::Welcome(Welcome { epoch, replica, start, head, backup, has_snapshot, owner_clock_us })
            }
            kind::REFUSED => FromOwner::Refused(Refusal::from_code(fields.u8()?, fields.version()?, fields.text()?)),
            kind::PAGE => {
                let flags = fields.u8()?;
                if flags & !(PAGE_START | PAGE_END) != 0 {
                    return Err(FrameError("a page has unknown flags"));
                }
                let (first, last) = (fields.version()?, fields.version()?);
                if first > last {
                    return Err(FrameError("a page ends before it begins"));
                }
                let (is_start, is_end) = (flags & PAGE_START != 0, flags & PAGE_END != 0);
                FromOwner::Page(PageFrame { first, last, is_start, is_end, body: fields.rest() })
            }
            kind::HEAD => FromOwner::Head { head: fields.version()?, owner_clock_us: fields.i64()? },
            kind::ABREAST => FromOwner::Abreast { version: fields.version()? },
            kind::SNAPSHOT_START => FromOwner::SnapshotStart(SnapshotInfo {
                replica: fields.version()?,
                version: fields.version()?,
                bytes: fields.option()?,
            }),
            kind::SNAPSHOT_DATA => FromOwner::SnapshotData(fields.rest()),
            kind::SNAPSHOT_END => FromOwner::SnapshotEnd { bytes: fields.u64()? },
            _ => return Err(FrameError("its kind is unknown")),
        };
        fields.end()?;
        Ok(decoded)
    }
}

/// A page's frame, made once and sent to every subscriber.
pub(crate) fn page_frame(first: Version, last: Version, is_start: bool, is_end: bool, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(body.len() + 18);
    out.put_u8(kind::PAGE);
    out.put_u8(if is_start { PAGE_START } else { 0 } | if is_end { PAGE_END } else { 0 });
    out.put_u64_le(first.as_u64());
    out.put_u64_le(last.as_u64());
    out.put_slice(body);
    out.freeze()
}

impl Refusal {
    /// A name for metrics and headers.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Refusal::TooOld { .. } => "too_old",
            Refusal::OtherReplica { .. } => "other_replica",
            Refusal::Ahead { .. } => "ahead",
            Refusal::OtherApp { .. } => "other_app",
            Refusal::NotOwner { .. } => "not_owner",
            Refusal::Starting => "starting",
            Refusal::Draining => "draining",
            Refusal::Stalled { .. } => "stalled",
            Refusal::Expired => "expired",
            Refusal::Busy { .. } => "busy",
            Refusal::NoSnapshot => "no_snapshot",
            Refusal::Protocol { .. } => "protocol",
            Refusal::Other { .. } => "other",
        }
    }

    fn to_code(&self) -> (u8, Version, &str) {
        match self {
            Refusal::TooOld { start } => (1, *start, ""),
            Refusal::OtherReplica { replica } => (2, *replica, ""),
            Refusal::Ahead { head } => (3, *head, ""),
            Refusal::OtherApp { app } => (4, Version::ZERO, app),
            Refusal::NotOwner { owner } => (5, Version::ZERO, owner),
            Refusal::Starting => (6, Version::ZERO, ""),
            Refusal::Draining => (7, Version::ZERO, ""),
            Refusal::Stalled { reason } => (8, Version::ZERO, reason),
            Refusal::Expired => (9, Version::ZERO, ""),
            Refusal::Busy { reason } => (10, Version::ZERO, reason),
            Refusal::NoSnapshot => (11, Version::ZERO, ""),
            Refusal::Protocol { reason } => (12, Version::ZERO, reason),
            Refusal::Other { code, reason } => (*code, Version::ZERO, reason),
        }
    }

    fn from_code(code: u8, number: Version, text: String) -> Refusal {
        match code {
            1 => Refusal::TooOld { start: number },
            2 => Refusal::OtherReplica { replica: number },
            3 => Refusal::Ahead { head: number },
            4 => Refusal::OtherApp { app: text },
            5 => Refusal::NotOwner { owner: text },
            6 => Refusal::Starting,
            7 => Refusal::Draining,
            8 => Refusal::Stalled { reason: text },
            9 => Refusal::Expired,
            10 => Refusal::Busy { reason: text },
            11 => Refusal::NoSnapshot,
            12 => Refusal::Protocol { reason: text },
            code => Refusal::Other { code, reason: text },
        }
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.put_u16_le(end as u16);
    out.put_slice(&text.as_bytes()[..end]);
}

fn put_option(out: &mut BytesMut, number: Option<u64>) {
    out.put_u8(u8::from(number.is_some()));
    if let Some(number) = number {
        out.put_u64_le(number);
    }
}

/// What is left of a frame.
struct Fields(Bytes);

const SHORT: FrameError = FrameError("it ends too early");

impl Fields {
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let array = *self.0.first_chunk::<N>().ok_or(SHORT)?;
        let _ = self.0.split_to(N);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    fn version(&mut self) -> Result<Version> {
        Ok(Version::new(self.u64()?))
    }

    fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FrameError("a flag is neither 0 nor 1")),
        }
    }

    fn option(&mut self) -> Result<Option<u64>> {
        if self.flag()? { self.u64().map(Some) } else { Ok(None) }
    }

    fn text(&mut self) -> Result<String> {
        let length = usize::from(self.u16()?);
        if length > TEXT_BYTES_MAX {
            return Err(FrameError("a text is too long"));
        }
        if length > self.0.len() {
            return Err(SHORT);
        }
        let bytes = self.0.split_to(length);
        std::str::from_utf8(&bytes).map(str::to_owned).map_err(|_| FrameError("a text is not UTF-8"))
    }

    fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.0)
    }

    fn end(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(FrameError("it is longer than its fields")) }
    }
}
