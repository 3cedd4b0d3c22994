use crate::*;
use abi::Errno;
use std::vec;

#[test]
fn bytes_written_at_any_offset_read_back() {
    let disk = MemDisk::new("t", 4096);
    let data: std::vec::Vec<u8> = (0..10_000u32).map(|i| (i * 7) as u8).collect();
    for offset in [0u64, 1, 511, 512, 4095, 4096, 5000] {
        write_at(&disk, offset, &data).unwrap();
        let mut back = vec![0; data.len()];
        read_at(&disk, offset, &mut back).unwrap();
        assert_eq!(back, data);
    }
    flush(&disk).unwrap();
}

#[test]
fn past_the_end_is_an_error() {
    let disk = MemDisk::new("t", 8);
    assert_eq!(write_at(&disk, 4000, &[1; 200]), Err(Errno::EIO));
    assert_eq!(read_at(&disk, u64::MAX, &mut [0; 2]), Err(Errno::EIO));
    assert_eq!(discard(&disk, 8, 1), Err(Errno::EIO));
    assert_eq!(disk.stats().snapshot().in_flight, 0);
}

#[test]
fn zeroes_with_and_without_the_device() {
    for by_device in [true, false] {
        let disk = MemDisk::with_geometry("t", Geometry { write_zeroes: by_device, ..Geometry::simple(1024) });
        write_at(&disk, 0, &vec![0xaa; 1024 * 512]).unwrap();
        zero_range(&disk, 3, 700).unwrap();
        let image = disk.to_image();
        assert!(image[..3 * 512].iter().all(|b| *b == 0xaa));
        assert!(image[3 * 512..703 * 512].iter().all(|b| *b == 0));
        assert!(image[703 * 512..].iter().all(|b| *b == 0xaa));
    }
}

#[test]
fn a_dropped_request_completes_with_an_error() {
    let batch = Batch::new();
    drop(Request::flush(batch.add(), 0));
    assert_eq!(batch.wait(), Err(Errno::EIO));
    assert_eq!(batch.wait(), Ok(()));
}

#[test]
fn a_cut_leaves_what_was_flushed_and_any_part_of_the_rest() {
    use testing::RecordingDisk;
    let disk = RecordingDisk::new(vec![0; 64 * 512], 512);
    write_at(&disk, 0, &[1; 1024]).unwrap();
    flush(&disk).unwrap();
    disk.mark(7);
    write_at(&disk, 512, &[2; 1024]).unwrap();
    write_fua_at(&disk, 4096, &[3; 512]).unwrap();
    let r = disk.recording();
    assert_eq!(r.events().len(), 5);
    let none = |_: usize, _: usize| false;
    assert!(r.image(0, none).iter().all(|b| *b == 0));
    assert_eq!(r.image(1, none)[0], 0);
    assert_eq!(r.image(1, |_, block| block == 1)[..1024], [[0u8; 512], [1; 512]].concat());
    assert_eq!(r.image(2, none)[..1024], [1; 1024]);
    assert_eq!(r.marks_before(2).count(), 0);
    assert_eq!(r.marks_before(3).collect::<std::vec::Vec<_>>(), [7]);
    let after = r.image(5, none);
    assert_eq!((after[512], after[4096]), (1, 3));
    assert_eq!(r.image(5, |_, _| true), disk.to_image());
    let mut cursor = r.cursor();
    for cut in 0..=5 {
        cursor.seek(cut);
        assert_eq!(cursor.image(none), r.image(cut, none));
    }
    assert!(cursor.at_end());
    assert_eq!(cursor.volatile_blocks(), 2);
}

#[test]
fn faults_are_injected_where_asked() {
    use testing::{Fault, FaultyDisk, What};
    let disk = FaultyDisk::new(std::sync::Arc::new(MemDisk::new("m", 1024)));
    disk.inject(Fault::once(What::Writes).at(8..16).after(1));
    assert_eq!(write_at(&disk, 0, &[1; 512]), Ok(()));
    assert_eq!(write_at(&disk, 4096, &[1; 512]), Ok(()));
    assert_eq!(write_at(&disk, 4096, &[1; 512]), Err(Errno::EIO));
    assert_eq!(write_at(&disk, 4096, &[1; 512]), Ok(()));
    disk.inject(Fault::always(What::Flushes));
    assert_eq!(flush(&disk), Err(Errno::EIO));
    disk.heal();
    assert_eq!(flush(&disk), Ok(()));
    disk.hold();
    let batch = Batch::new();
    disk.submit(Request::flush(batch.add(), 0));
    assert_eq!((disk.held(), batch.pending()), (1, 1));
    disk.vanish();
    assert_eq!(batch.wait(), Err(Errno::EIO));
    assert_eq!(read_at(&disk, 0, &mut [0]), Err(Errno::EIO));
}

/// Gives `left` bytes of 9 and then faults.
struct Faulting {
    left: usize,
    promised: usize,
}

impl platform::WriteSource for Faulting {
    fn remaining(&self) -> usize {
        self.promised
    }
    fn get(&mut self, dst: platform::SharedBytesMut<'_>) -> Result<usize, platform::bytes::Fault> {
        let n = dst.len().min(self.left);
        if n == 0 {
            return Err(platform::bytes::Fault);
        }
        let mut dst = dst;
        let data = vec![9; n];
        dst.copy_from(platform::SharedBytes::from(&data[..]));
        self.left -= n;
        self.promised -= n;
        Ok(n)
    }
}

#[test]
fn streams_end_where_the_device_does() {
    use platform::{SliceSink, SliceSource};
    let disk = MemDisk::new("t", 16);
    assert_eq!(write_from(&disk, 8000, &mut SliceSource::new(&[5; 500]), false), Ok(192));
    assert_eq!(write_from(&disk, 8192, &mut SliceSource::new(&[5; 500]), false), Err(Errno::ENOSPC));
    let mut buf = [0; 300];
    assert_eq!(read_to(&disk, 7990, &mut SliceSink::new(&mut buf)), Ok(202));
    assert_eq!((buf[9], buf[10], buf[201], buf[202]), (0, 5, 5, 0));
    assert_eq!(read_to(&disk, 9000, &mut SliceSink::new(&mut buf)), Ok(0));
}

#[test]
fn a_source_that_faults_writes_only_what_it_gave() {
    for (offset, left, expected) in [(0, 1500, 1024), (100, 1500, 1500), (0, 100, 0), (512, 512, 512)] {
        let disk = MemDisk::new("t", 64);
        write_at(&disk, 0, &[1; 8192]).unwrap();
        let done = write_from(&disk, offset, &mut Faulting { left, promised: 8192 }, false);
        assert_eq!(done, if expected == 0 { Err(Errno::EFAULT) } else { Ok(expected) });
        let image = disk.to_image();
        let nines: usize = image.iter().map(|b| usize::from(*b == 9)).sum();
        assert_eq!(nines, expected);
        assert!(image[..8192].iter().all(|b| *b != 0));
    }
}
