//! Channel binding of type `tls-server-end-point` (RFC 5929): the hash of the server's certificate, by which a password counts for no
//! other server.

use sha2::{Digest, Sha256, Sha384, Sha512};

/// `None` if the certificate's signature says no hash.
pub(crate) fn of(certificate: &[u8]) -> Option<Vec<u8>> {
    match signature_algorithm(certificate)? {
        // RSA with MD5, SHA-1 and SHA-256; ECDSA with SHA-1 and SHA-256: the weak ones are replaced.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04 | 0x05 | 0x0b]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02] => Some(Sha256::digest(certificate).to_vec()),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03] => {
            Some(Sha384::digest(certificate).to_vec())
        }
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04] => {
            Some(Sha512::digest(certificate).to_vec())
        }
        _ => None,
    }
}

/// The second element of the certificate, whose first is an object identifier.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (whole, _) = element(certificate, 0x30)?;
    let (_, rest) = element(whole, 0x30)?;
    let (algorithm, _) = element(rest, 0x30)?;
    Some(element(algorithm, 0x06)?.0)
}

/// The contents of the DER element at the beginning, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = bytes.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match usize::from(first) {
        short @ 0..0x80 => (short, rest),
        long => {
            let (digits, rest) = rest.split_at_checked(long - 0x80)?;
            let digits =
                digits.iter().try_fold(0_usize, |n, digit| n.checked_mul(256)?.checked_add(usize::from(*digit)));
            (digits?, rest)
        }
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_signatures_and_garbage_is_survived() {
        let of_algorithm = |oid: &[u8]| {
            let algorithm = [&[0x06, u8::try_from(oid.len()).unwrap()], oid].concat();
            let inner = [&[0x30, 1, 0][..], &[0x30, u8::try_from(algorithm.len()).unwrap()], &algorithm].concat();
            [&[0x30, 0x81, u8::try_from(inner.len()).unwrap()][..], &inner].concat()
        };
        let rsa_sha512 = of_algorithm(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d]);
        assert_eq!(of(&rsa_sha512).unwrap().len(), 64);
        assert_eq!(of(&of_algorithm(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02])).unwrap().len(), 32);
        assert_eq!(of(&of_algorithm(&[0x2b, 0x65, 0x70])), None);
        for end in 0..rsa_sha512.len() {
            assert_eq!(of(&rsa_sha512[..end]), None);
        }
    }
}
