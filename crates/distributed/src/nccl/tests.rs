//! Runs a communicator with functions that stand in for NCCL's and CUDA's. They record each call and answer as the test
//! says.

use std::{
    cell::{Cell, RefCell},
    ffi::{c_char, c_void},
    ptr,
};

use super::*;

thread_local! {
    static CALLS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// The next states of the communicator; afterwards, `LAST_STATE`.
    static STATES: RefCell<Vec<i32>> = const { RefCell::new(Vec::new()) };
    static LAST_STATE: Cell<i32> = const { Cell::new(code::SUCCESS) };
    /// The next states of the stream; afterwards, `LAST_QUERY`.
    static QUERIES: RefCell<Vec<i32>> = const { RefCell::new(Vec::new()) };
    static LAST_QUERY: Cell<i32> = const { Cell::new(code::SUCCESS) };
    static DEVICE: Cell<c_int> = const { Cell::new(7) };
    /// What CUDA remembers for this thread.
    static LAST_ERROR: Cell<i32> = const { Cell::new(code::SUCCESS) };
}

fn note(call: String) -> i32 {
    CALLS.with_borrow_mut(|calls| calls.push(call));
    code::SUCCESS
}

/// The calls since the last time.
fn calls() -> Vec<String> {
    CALLS.take()
}

fn next(of: &RefCell<Vec<i32>>, last: i32) -> i32 {
    let mut states = of.borrow_mut();
    if states.is_empty() {
        last
    } else {
        states.remove(0)
    }
}

unsafe extern "C" fn get_unique_id(id: *mut UniqueId) -> i32 {
    // SAFETY: the caller passes a place for an id.
    unsafe { id.write(UniqueId([42; 128])) };
    note("id".to_owned())
}

unsafe extern "C" fn init_rank(
    comm: *mut Comm,
    size: c_int,
    id: UniqueId,
    rank: c_int,
    config: *mut Config,
) -> i32 {
    // SAFETY: the caller passes a place for the communicator, and a configuration.
    let config = unsafe {
        comm.write(ptr::without_provenance_mut(0x1000));
        &*config
    };
    assert_eq!(
        (config.size, config.magic, config.blocking),
        (24, 0xcafe_beef, 0)
    );
    note(format!(
        "init rank {rank} of {size}, id {}, on cuda:{}",
        id.0[0],
        DEVICE.get()
    ));
    code::IN_PROGRESS
}

unsafe extern "C" fn finalize(_: Comm) -> i32 {
    note("finalize".to_owned());
    code::IN_PROGRESS
}

unsafe extern "C" fn destroy(comm: Comm) -> i32 {
    note(format!("destroy {comm:?}"))
}

unsafe extern "C" fn abort(comm: Comm) -> i32 {
    note(format!("abort {comm:?}"))
}

unsafe extern "C" fn async_error(_: Comm, state: *mut i32) -> i32 {
    let answer = STATES.with(|states| next(states, LAST_STATE.get()));
    // SAFETY: the caller passes a place for the code.
    unsafe { state.write(answer) };
    code::SUCCESS
}

unsafe extern "C" fn last_error(_: Comm) -> *const c_char {
    c"socket closed by rank 1\nmore".as_ptr()
}

unsafe extern "C" fn error_string(_: i32) -> *const c_char {
    c"remote process exited or there was a network error".as_ptr()
}

unsafe extern "C" fn group_start() -> i32 {
    note("group".to_owned())
}

unsafe extern "C" fn group_end() -> i32 {
    note("end".to_owned())
}

unsafe extern "C" fn send(
    from: *const c_void,
    count: usize,
    kind: c_int,
    peer: c_int,
    _: Comm,
    stream: Stream,
) -> i32 {
    note(format!(
        "send {count} of {kind} from {from:?} to {peer} on {stream:?}"
    ))
}

unsafe extern "C" fn receive(
    to: *mut c_void,
    count: usize,
    kind: c_int,
    peer: c_int,
    _: Comm,
    stream: Stream,
) -> i32 {
    note(format!(
        "receive {count} of {kind} at {to:?} from {peer} on {stream:?}"
    ))
}

unsafe extern "C" fn all_gather(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    kind: c_int,
    _: Comm,
    stream: Stream,
) -> i32 {
    note(format!(
        "all_gather {count} of {kind} from {from:?} to {to:?} on {stream:?}"
    ))
}

unsafe extern "C" fn all_to_all(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    kind: c_int,
    _: Comm,
    stream: Stream,
) -> i32 {
    note(format!(
        "all_to_all {count} of {kind} from {from:?} to {to:?} on {stream:?}"
    ))
}

unsafe extern "C" fn get_device(device: *mut c_int) -> i32 {
    // SAFETY: the caller passes a place for the number.
    unsafe { device.write(DEVICE.get()) };
    code::SUCCESS
}

unsafe extern "C" fn set_device(device: c_int) -> i32 {
    DEVICE.set(device);
    code::SUCCESS
}

unsafe extern "C" fn stream_query(_: Stream) -> i32 {
    let answer = QUERIES.with(|queries| next(queries, LAST_QUERY.get()));
    if answer != code::SUCCESS {
        LAST_ERROR.set(answer);
    }
    answer
}

unsafe extern "C" fn clear_error() -> i32 {
    LAST_ERROR.replace(code::SUCCESS)
}

unsafe extern "C" fn cuda_error_string(_: i32) -> *const c_char {
    c"an illegal memory access was encountered".as_ptr()
}

fn functions() -> Functions {
    Functions {
        get_unique_id,
        init_rank,
        finalize,
        destroy,
        abort,
        async_error,
        last_error,
        error_string,
        group_start,
        group_end,
        send,
        receive,
        all_gather,
        all_to_all: Some(all_to_all),
        get_device,
        set_device,
        stream_query,
        clear_error,
        cuda_error_string,
        current_stream: |index| Ok(ptr::without_provenance_mut(0x500 + index)),
    }
}

const TIMEOUT: Duration = Duration::from_millis(20);

fn joined(functions: Functions) -> Communicator {
    STATES.set(vec![code::IN_PROGRESS, code::IN_PROGRESS]);
    let id = functions.unique_id().unwrap();
    let joined = Communicator::join(functions, 2, 1, 2, &id, TIMEOUT).unwrap();
    assert_eq!(calls(), ["id", "init rank 1 of 2, id 42, on cuda:2"]);
    assert!(STATES.take().is_empty(), "join did not wait");
    assert_eq!(DEVICE.get(), 7, "the current GPU was changed");
    joined
}

fn transfer(communicator: &mut Communicator, sent: Sent) -> Result<(), DistributedError> {
    let (out, input) = (
        ptr::without_provenance_mut(0x200),
        ptr::without_provenance(0x100),
    );
    // SAFETY: the functions of this file do not read or write the memory.
    unsafe { communicator.transfer("a transfer", out, input, 16, sent) }
}

#[test]
fn transfers_run_on_the_current_stream_and_are_waited_for() {
    let mut communicator = joined(functions());
    QUERIES.set(vec![code::NOT_READY; 3]);
    STATES.set(vec![code::IN_PROGRESS]);
    transfer(&mut communicator, Sent::Parts).unwrap();
    assert_eq!(calls(), ["all_to_all 16 of 1 from 0x100 to 0x200 on 0x502"]);
    assert!(QUERIES.take().is_empty(), "the stream was not waited for");
    assert_eq!(
        LAST_ERROR.get(),
        code::SUCCESS,
        "libtorch would find an error"
    );
    assert!(STATES.take().is_empty(), "the call was not waited for");
    transfer(&mut communicator, Sent::Same).unwrap();
    assert_eq!(calls(), ["all_gather 16 of 1 from 0x100 to 0x200 on 0x502"]);
    assert_eq!(DEVICE.get(), 7);
    STATES.set(vec![code::IN_PROGRESS]);
    drop(communicator);
    assert_eq!(calls(), ["finalize", "destroy 0x1000"]);
    assert!(STATES.take().is_empty(), "the end was not waited for");
}

#[test]
fn an_old_nccl_sends_and_receives_each_part() {
    let mut communicator = joined(Functions {
        all_to_all: None,
        ..functions()
    });
    transfer(&mut communicator, Sent::Parts).unwrap();
    let expected = [
        "group",
        "send 16 of 1 from 0x100 to 0 on 0x502",
        "receive 16 of 1 at 0x200 from 0 on 0x502",
        "send 16 of 1 from 0x110 to 1 on 0x502",
        "receive 16 of 1 at 0x210 from 1 on 0x502",
        "end",
    ];
    assert_eq!(calls(), expected);
}

#[test]
fn a_rank_that_never_joins_is_a_timeout() {
    LAST_STATE.set(code::IN_PROGRESS);
    let error = Communicator::join(functions(), 0, 0, 2, &[1; 128], TIMEOUT).unwrap_err();
    assert!(
        matches!(&error, DistributedError::TimedOut { seconds: 0.02, .. }),
        "{error}"
    );
    assert_eq!(
        calls(),
        ["init rank 0 of 2, id 1, on cuda:0", "abort 0x1000"]
    );
}

#[test]
fn a_transfer_that_never_ends_is_a_timeout() {
    let mut communicator = joined(functions());
    LAST_QUERY.set(code::NOT_READY);
    let error = transfer(&mut communicator, Sent::Same).unwrap_err();
    assert!(
        matches!(error, DistributedError::TimedOut { .. }),
        "{error}"
    );
    calls();
    drop(communicator);
    assert_eq!(calls(), ["abort 0x1000"]);
}

#[test]
fn a_rank_that_ends_is_noticed_while_the_gpu_waits() {
    let mut communicator = joined(functions());
    LAST_QUERY.set(code::NOT_READY);
    STATES.set(vec![code::SUCCESS, code::SUCCESS, code::REMOTE_ERROR]);
    let error = transfer(&mut communicator, Sent::Same).unwrap_err();
    assert!(matches!(error, DistributedError::Lost { .. }), "{error}");
    let message = error.to_string();
    let expected = "a transfer failed because another process is gone: remote process exited or there was a network \
                    error (code 6): socket closed by rank 1:";
    assert!(message.starts_with(expected), "{message}");
    calls();
    drop(communicator);
    assert_eq!(calls(), ["abort 0x1000"]);
}

#[test]
fn an_error_of_the_gpu_keeps_its_reason() {
    let mut communicator = joined(functions());
    QUERIES.set(vec![700]);
    let message = transfer(&mut communicator, Sent::Parts)
        .unwrap_err()
        .to_string();
    let expected =
        "NCCL: a transfer failed: CUDA: an illegal memory access was encountered (code 700)";
    assert_eq!(message, expected);
}

#[test]
fn the_id_of_a_failed_rank_0_is_refused() {
    let error = Communicator::join(functions(), 0, 1, 2, &[], TIMEOUT).unwrap_err();
    assert!(error.to_string().contains("rank 0 could not"), "{error}");
    assert!(calls().is_empty());
}
