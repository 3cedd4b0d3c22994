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
        write_at(&disk, 0, &[0xaa; 1024 * 512]).unwrap();
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
