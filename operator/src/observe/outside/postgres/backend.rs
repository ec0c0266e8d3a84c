//! Which process the server says it serves a connection with.
//!
//! A pooler answers with a number of its own, and `pg_backend_pid()` then differs: the only sign of a pooler that forwarding of
//! addresses and ports cannot imitate. The client library keeps the number to itself, so the start of the stream is read along.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

/// Longest message that is waited out before the process is named.
const MESSAGE_MAX: usize = 64 << 10;
const KEY_DATA: u8 = b'K';
const NONE: i32 = 0;

/// The number, once the server has named it.
#[derive(Clone, Debug, Default)]
pub(super) struct Named(Arc<AtomicI32>);

impl Named {
    pub fn process(&self) -> Option<i32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|process| *process != NONE)
    }
}

/// Reads message after message: a kind, a length, a body.
#[derive(Debug, Default)]
struct Reader {
    bytes: Vec<u8>,
    skip: usize,
    is_begun: bool,
    is_over: bool,
}

impl Reader {
    fn read(&mut self, mut bytes: &[u8]) -> Option<i32> {
        if !self.is_begun {
            let first = bytes.first()?;
            self.is_begun = true;
            // The answer to a request for TLS is a single letter.
            if matches!(first, b'S' | b'N') {
                bytes = &bytes[1..];
            }
        }
        while !self.is_over && !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let needed = if self.bytes.first() == Some(&KEY_DATA) { 9 } else { 5 };
            let taken = needed.min(self.bytes.len() + bytes.len()) - self.bytes.len();
            self.bytes.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            let [kind, a, b, c, d, rest @ ..] = self.bytes.as_slice() else { continue };
            let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
            if *kind == KEY_DATA {
                let [a, b, c, d] = rest else { continue };
                let process = i32::from_be_bytes([*a, *b, *c, *d]);
                *self = Reader { is_begun: true, is_over: true, ..Reader::default() };
                return Some(process);
            }
            // Ciphertext, or whatever else is no message of this protocol.
            if !kind.is_ascii_alphabetic() || !(4..=MESSAGE_MAX).contains(&length) {
                *self = Reader { is_begun: true, is_over: true, ..Reader::default() };
                return None;
            }
            self.bytes.clear();
            self.skip = length - 4;
        }
        None
    }
}

/// A stream whose beginning is read along.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    reader: Reader,
    named: Named,
}

impl<S> Watched<S> {
    /// A stream that may begin with the answer to a request for TLS.
    pub fn new(stream: S, named: &Named) -> Watched<S> {
        Watched { stream, reader: Reader::default(), named: named.clone() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let Watched { reader, named, .. } = &mut *self;
        if let Some(process) = reader.read(&buffer.filled()[before..]) {
            named.0.store(process, Ordering::Relaxed);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Watched<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.channel_binding()
    }
}

/// TLS whose decrypted stream is read along.
pub(super) struct WatchedTls<T> {
    pub tls: T,
    pub named: Named,
}

impl<S, T> TlsConnect<S> for WatchedTls<T>
where
    T: TlsConnect<S>,
    T::Future: Send + 'static,
{
    type Stream = Watched<T::Stream>;
    type Error = T::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, T::Error>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let WatchedTls { tls, named } = self;
        let connecting = tls.connect(stream);
        Box::pin(async move {
            let stream = connecting.await?;
            // The request for TLS was answered outside.
            Ok(Watched { stream, reader: Reader { is_begun: true, ..Reader::default() }, named })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[kind], &length[..], body].concat()
    }

    fn start() -> Vec<u8> {
        let key = [7i32.to_be_bytes(), 9i32.to_be_bytes()].concat();
        [message(b'R', &[0; 4]), message(b'S', b"a\0b\0"), message(b'K', &key), message(b'Z', b"I")].concat()
    }

    #[test]
    fn the_process_is_read_however_the_bytes_arrive() {
        for size in 1..start().len() {
            let mut reader = Reader::default();
            let found: Vec<i32> = start().chunks(size).filter_map(|bytes| reader.read(bytes)).collect();
            assert_eq!(found, [7], "{size}");
        }
        let mut reader = Reader::default();
        assert_eq!((reader.read(b"N"), reader.read(&start())), (None, Some(7)));
    }

    #[test]
    fn what_is_no_message_ends_the_reading() {
        for bytes in
            [&[0x16, 3, 3, 0, 5][..], b"HTTP/1.1 400 Bad Request\r\n", &[b'R', 0xff, 0xff, 0xff, 0xff], b"R\0\0\0\x03"]
        {
            let mut reader = Reader::default();
            assert_eq!((reader.read(bytes), reader.read(&start())), (None, None), "{bytes:?}");
            assert!(reader.bytes.is_empty());
        }
    }
}
