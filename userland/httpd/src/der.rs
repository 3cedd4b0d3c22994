//! What a certificate says of its time and its maker, read from its DER without the rest (RFC 5280, 4.1).

/// What is read of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// Not valid before, in seconds since 1970.
    pub from: i64,
    /// Not valid after.
    pub until: i64,
    /// It names itself as its issuer.
    pub own: bool,
}

/// The value at the beginning of `bytes`: its tag, its content, and what follows.
fn value(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&short, rest) = rest.split_first()?;
    let (length, rest) = if short < 0x80 {
        (usize::from(short), rest)
    } else {
        let (long, rest) = rest.split_at_checked(usize::from(short & 0x7f))?;
        if long.len() > 4 {
            return None;
        }
        (long.iter().fold(0, |n, b| n << 8 | usize::from(*b)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// Reads a certificate.
pub fn about(certificate: &[u8]) -> Option<About> {
    const SEQUENCE: u8 = 0x30;
    const VERSION: u8 = 0xa0;
    let (_, certificate, _) = value(certificate).filter(|v| v.0 == SEQUENCE)?;
    let (_, mut at, _) = value(certificate).filter(|v| v.0 == SEQUENCE)?;
    if at.first() == Some(&VERSION) {
        at = value(at)?.2;
    }
    // Serial number, algorithm.
    for _ in 0..2 {
        at = value(at)?.2;
    }
    let (_, issuer, at) = value(at).filter(|v| v.0 == SEQUENCE)?;
    let (_, validity, at) = value(at).filter(|v| v.0 == SEQUENCE)?;
    let (_, subject, _) = value(at).filter(|v| v.0 == SEQUENCE)?;
    let (tag, from, rest) = value(validity)?;
    let from = time(tag, from)?;
    let (tag, until, _) = value(rest)?;
    Some(About { from, until: time(tag, until)?, own: issuer == subject })
}

/// UTCTime or GeneralizedTime, in the one form that certificates may use: to the second, ending in Z.
fn time(tag: u8, text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        0x17 => text.split_at_checked(2)?,
        0x18 => text.split_at_checked(4)?,
        _ => return None,
    };
    if rest.len() != 10 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let field = |at: usize| rest.get(at..at + 2)?.parse::<i64>().ok();
    let year: i64 = year.parse().ok()?;
    let year = match tag {
        0x17 if year < 50 => 2000 + year,
        0x17 => 1900 + year,
        _ => year,
    };
    let (month, day) = (field(0)?, field(2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days of the civil calendar: years begin in March, so that the leap day is a year's last.
    let y = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + day_of_year - 719_468;
    Some(days * 86_400 + field(4)? * 3600 + field(6)? * 60 + field(8)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds() {
        assert_eq!(time(0x17, b"700101000000Z"), Some(0));
        assert_eq!(time(0x17, b"260228235959Z"), Some(1_772_323_199));
        assert_eq!(time(0x18, b"20240229120000Z"), Some(1_709_208_000));
        assert_eq!(time(0x18, b"20500101000000Z"), Some(2_524_608_000));
        assert_eq!([time(0x17, b"2401010000Z"), time(0x18, b"20241301000000Z"), time(2, b"")], [None; 3]);
    }

    #[test]
    fn nothing_is_read_beyond_the_end() {
        let key = rcgen::KeyPair::generate().unwrap();
        let whole = rcgen::CertificateParams::new(vec!["a.example".into()]).unwrap().self_signed(&key).unwrap();
        let whole: &[u8] = whole.der();
        assert!(about(whole).is_some_and(|a| a.own && a.from < a.until));
        for n in 0..whole.len() {
            let _ = about(&whole[..n]);
            let mut damaged = whole.to_vec();
            damaged[n] ^= 0xff;
            let _ = about(&damaged);
        }
        assert_eq!(about(&whole[..whole.len() / 4]), None);
    }
}
