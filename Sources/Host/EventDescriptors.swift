// SPDX-License-Identifier: Apache-2.0
//
// Events as file descriptors: eventfd, timerfd, signalfd, and the epoll instance that waits for all
// of them. Each type owns its descriptor.
//
//     let poller = try Poller()
//     let wake = try EventFile()
//     try poller.add(wake.descriptor.rawValue, token: 1)
//     try poller.wait { token, _ in if token == 1 { wake.consume() } }

import CHost
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

/// A counter to wait for (eventfd).
package struct EventFile: ~Copyable, Sendable {
  package let descriptor: OwnedFileDescriptor

  package init() throws(Errno) {
    descriptor = OwnedFileDescriptor(
      owning: try systemCall { () -> Int32 in eventfd(0, Int32(EFD_CLOEXEC | EFD_NONBLOCK)) })
  }

  /// Adds 1 and so wakes waiters. Safe in signal handlers.
  package func signal() {
    var one: UInt64 = 1
    _ = unsafe write(descriptor.rawValue, &one, 8)
  }

  /// Resets the counter to 0 and returns its old value.
  @discardableResult
  package func consume() -> UInt64 {
    var value: UInt64 = 0
    return unsafe Glibc.read(descriptor.rawValue, &value, 8) == 8 ? value : 0
  }
}

/// A timer on the monotonic clock (timerfd).
package struct TimerFile: ~Copyable, Sendable {
  package let descriptor: OwnedFileDescriptor

  package init() throws(Errno) {
    let flags = Int32(TFD_CLOEXEC | TFD_NONBLOCK)
    descriptor = OwnedFileDescriptor(
      owning: try systemCall { () -> Int32 in timerfd_create(CLOCK_MONOTONIC, flags) })
  }

  /// Arms the timer to fire once at a monotonic time in nanoseconds; nil disarms it.
  package func arm(at deadline: UInt64?) throws(Errno) {
    var setting = itimerspec()
    if let deadline {
      let time = max(deadline, 1)
      setting.it_value = timespec(
        tv_sec: Int(time / 1_000_000_000), tv_nsec: Int(time % 1_000_000_000))
    }
    let raw = descriptor.rawValue
    let flags = Int32(TFD_TIMER_ABSTIME)
    _ = try systemCall { () -> Int32 in unsafe timerfd_settime(raw, flags, &setting, nil) }
  }

  /// How often the timer has fired since the last call.
  @discardableResult
  package func consume() -> UInt64 {
    var value: UInt64 = 0
    return unsafe Glibc.read(descriptor.rawValue, &value, 8) == 8 ? value : 0
  }
}

/// Signals that arrive as readable events (signalfd). Blocks them for the calling thread, so make
/// it before the process starts others: new threads inherit the mask.
package struct SignalFile: ~Copyable, Sendable {
  package let descriptor: OwnedFileDescriptor

  package init(_ signals: [Int32]) throws(Errno) {
    var mask = sigset_t()
    unsafe sigemptyset(&mask)
    for signal in signals { unsafe sigaddset(&mask, signal) }
    try threadCall { unsafe pthread_sigmask(SIG_BLOCK, &mask, nil) }
    let flags = Int32(SFD_CLOEXEC | SFD_NONBLOCK)
    descriptor = OwnedFileDescriptor(
      owning: try systemCall { () -> Int32 in unsafe signalfd(-1, &mask, flags) })
  }

  /// The next pending signal's number, or nil.
  package func next() -> Int32? {
    var info = signalfd_siginfo()
    let size = MemoryLayout<signalfd_siginfo>.size
    return unsafe Glibc.read(descriptor.rawValue, &info, size) == size ? Int32(info.ssi_signo) : nil
  }
}

/// Waits for many descriptors at once (epoll, level-triggered).
package struct Poller: ~Copyable, Sendable {
  package let descriptor: OwnedFileDescriptor

  /// Events of a descriptor.
  package struct Readiness: OptionSet, Sendable {
    package let rawValue: UInt32
    package init(rawValue: UInt32) { self.rawValue = rawValue }

    package static let readable = Self(rawValue: EPOLLIN.rawValue)
    package static let writable = Self(rawValue: EPOLLOUT.rawValue)
    package static let hangUp = Self(rawValue: EPOLLHUP.rawValue)
    package static let error = Self(rawValue: EPOLLERR.rawValue)
    /// As interest: edge-triggered; reports each new event once, consumed or not.
    package static let edge = Self(rawValue: EPOLLET.rawValue)
  }

  package init() throws(Errno) {
    descriptor = OwnedFileDescriptor(
      owning: try systemCall { () -> Int32 in epoll_create1(Int32(EPOLL_CLOEXEC)) })
  }

  /// Changes the events that a registered descriptor reports.
  package func change(
    _ file: Int32, token: UInt64, interest: Readiness
  ) throws(Errno) {
    try control(EPOLL_CTL_MOD, file, token: token, interest: interest)
  }

  /// Tokens of registered open files. epoll drops a file with its last descriptor in any process
  /// (Linux, "/proc/<pid>/fdinfo": the lines of an epoll file).
  package var tokens: Set<UInt64>? {
    guard let info = try? contentsOfFile("/proc/self/fdinfo/\(descriptor.rawValue)") else {
      return nil
    }
    var tokens: Set<UInt64> = []
    for line in info.split(separator: UInt8(ascii: "\n")) {
      let words = String(decoding: line, as: UTF8.self).split(separator: " ")
      guard words.first == "tfd:", let place = words.firstIndex(of: "data:"),
        place + 1 < words.count, let token = UInt64(words[place + 1], radix: 16)
      else { continue }
      tokens.insert(token)
    }
    return tokens
  }

  /// Adds a descriptor; `wait` reports it as `token`. Regular files throw `Errno.notPermitted`.
  package func add(
    _ file: Int32, token: UInt64, interest: Readiness = .readable
  ) throws(Errno) {
    try control(EPOLL_CTL_ADD, file, token: token, interest: interest)
  }

  private func control(
    _ operation: Int32, _ file: Int32, token: UInt64, interest: Readiness
  ) throws(Errno) {
    var event = unsafe epoll_event()
    unsafe event.events = interest.rawValue
    unsafe event.data.u64 = token
    let raw = descriptor.rawValue
    _ = try systemCall { () -> Int32 in unsafe epoll_ctl(raw, operation, file, &event) }
  }

  /// Removes a descriptor.
  package func remove(_ file: Int32) throws(Errno) {
    let raw = descriptor.rawValue
    _ = try systemCall { () -> Int32 in epoll_ctl(raw, EPOLL_CTL_DEL, file, nil) }
  }

  /// Waits for events and calls `body` for each.
  ///
  /// - Parameter timeout: milliseconds; nil waits without limit.
  package func wait(
    timeout: Int32? = nil, _ body: (_ token: UInt64, _ readiness: Readiness) -> Void
  ) throws(Errno) {
    var events = unsafe [epoll_event](repeating: epoll_event(), count: 16)
    let raw = descriptor.rawValue
    let count = try systemCall { () -> Int32 in unsafe epoll_wait(raw, &events, 16, timeout ?? -1) }
    for n in 0..<Int(count) {
      let event = unsafe events[n]
      unsafe body(event.data.u64, Readiness(rawValue: event.events))
    }
  }
}
