//! What every object has besides its programs and maps.

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier refuses a program in which this is reachable.
    unsafe { core::hint::unreachable_unchecked() }
}

// Socket helpers are for GPL-compatible programs only; Apache-2.0 code may be combined into one.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
