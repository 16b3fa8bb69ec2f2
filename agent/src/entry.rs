//! Where the C library starts the agent.

/// glibc calls this. std's own start is left out because it opens /dev/null for missing standard descriptors and aborts
/// when there is none; a machine's init begins with no descriptors and an empty /dev.
#[cfg(not(test))]
#[no_mangle]
extern "C" fn main(_argc: std::os::raw::c_int, _argv: *const *const std::os::raw::c_char) -> std::os::raw::c_int {
    crate::start()
}
