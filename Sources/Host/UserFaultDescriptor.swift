// SPDX-License-Identifier: Apache-2.0
//
// userfaultfd in its write-protect mode: writes to protected pages of this process, by a thread's
// store or by the kernel on its behalf, wait until the page is opened again.
//
//     let faults = try UserFaultDescriptor()
//     try faults.register(memory)             // anonymous, shared or huge pages
//     try faults.protect(page)
//     faults.wait { page in ...; faults.open(page) }
//
// userfaultfd(2), ioctl_userfaultfd(2), and the kernel's "Userfaultfd" page have the facts.

import CHost
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

package struct UserFaultDescriptor: ~Copyable, Sendable {
  private let descriptor: OwnedFileDescriptor

  /// Kernel 6.4 and later: absent pages can be protected.
  private static let unpopulated: UInt64 = 1 << 13
  private static let required = UInt64(UFFD_FEATURE_PAGEFAULT_FLAG_WP)
  private static let wanted =
    required | UInt64(UFFD_FEATURE_WP_HUGETLBFS_SHMEM) | unpopulated

  /// - Throws: EPERM if the kernel denies it to this user (`vm.unprivileged_userfaultfd`),
  ///   ENOSYS and EINVAL if it lacks the feature.
  package init() throws(Errno) {
    descriptor = OwnedFileDescriptor(owning: try Self.makeReady())
  }

  private static func makeReady() throws(Errno) -> Int32 {
    // Features can be requested once per descriptor: the first one queries the available ones.
    let probe = OwnedFileDescriptor(owning: try make())
    let offered = try shakeHands(probe.rawValue, features: 0)
    guard offered & required == required else { throw .notSupported }
    let made = OwnedFileDescriptor(owning: try make())
    _ = try shakeHands(made.rawValue, features: offered & wanted)
    return made.release()
  }

  private static let flags = Int(O_CLOEXEC | O_NONBLOCK)

  /// By the system call, else by the device, which has file permissions.
  private static func make() throws(Errno) -> Int32 {
    do throws(Errno) {
      return Int32(
        try systemCall { () -> Int in chost_syscall(Int(SYS_userfaultfd), flags, 0, 0, 0, 0, 0) })
    } catch {
      guard let device = try? OwnedFileDescriptor(opening: "/dev/userfaultfd", flags: O_RDWR),
        let made = try? control(device.rawValue, CUSERFAULTFD_IOC_NEW, UInt(bitPattern: flags))
      else { throw error }
      return Int32(made)
    }
  }

  private static func shakeHands(_ file: Int32, features: UInt64) throws(Errno) -> UInt64 {
    var api = uffdio_api(api: UInt64(CUFFDIO_API & 0xFF00) >> 8, features: features, ioctls: 0)
    _ = try unsafe withUnsafeMutablePointer(to: &api) { (place) throws(Errno) in
      try control(file, CUFFDIO_API, UInt(bitPattern: place))
    }
    return api.features
  }

  /// ioctl as a system call, because the C library's function may be interposed.
  @discardableResult
  private static func control(
    _ file: Int32, _ request: UInt, _ argument: UInt
  ) throws(Errno) -> Int {
    try systemCall { () -> Int in
      chost_syscall(
        Int(SYS_ioctl), Int(file), Int(bitPattern: request), Int(bitPattern: argument), 0, 0, 0)
    }
  }

  private func control<T>(_ request: UInt, _ value: T) throws(Errno) {
    var value = value
    try unsafe withUnsafeMutablePointer(to: &value) { (place) throws(Errno) in
      _ = try Self.control(descriptor.rawValue, request, UInt(bitPattern: place))
    }
  }

  private static func range(_ memory: Range<UInt>) -> uffdio_range {
    uffdio_range(start: UInt64(memory.lowerBound), len: UInt64(memory.count))
  }

  /// Registers whole pages; holes among them stay unregistered.
  ///
  /// - Throws: EBUSY if another descriptor has them; EINVAL for other kinds of memory.
  package func register(_ memory: Range<UInt>) throws(Errno) {
    try control(
      CUFFDIO_REGISTER,
      uffdio_register(range: Self.range(memory), mode: UInt64(1 << 1), ioctls: 0))
  }

  package func unregister(_ memory: Range<UInt>) {
    try? control(CUFFDIO_UNREGISTER, Self.range(memory))
  }

  /// Protects pages of registered memory: writes to them wait.
  ///
  /// - Throws: ENOENT if they are not registered (any more).
  package func protect(_ memory: Range<UInt>) throws(Errno) {
    try control(
      CUFFDIO_WRITEPROTECT, uffdio_writeprotect(range: Self.range(memory), mode: UInt64(1 << 0)))
  }

  /// Unprotects pages: writes continue.
  package func open(_ memory: Range<UInt>) {
    do throws(Errno) {
      try control(
        CUFFDIO_WRITEPROTECT, uffdio_writeprotect(range: Self.range(memory), mode: 0))
    } catch {
      // Not registered any more: waiting threads retry.
      try? control(CUFFDIO_WAKE, Self.range(memory))
    }
  }

  private static let messageSize = MemoryLayout<uffd_msg>.size
  private static let messagesAtOnce = 16
  private static let addressOffset = 16

  /// Waits for writes to protected pages and calls `body` with the address of each. Allocates
  /// nothing. Returns when the descriptor fails.
  package func wait(_ body: (UInt) -> Void) {
    unsafe withUnsafeTemporaryAllocation(
      byteCount: Self.messageSize * Self.messagesAtOnce, alignment: 8
    ) { buffer in
      while true {
        var poller = pollfd(fd: descriptor.rawValue, events: Int16(POLLIN), revents: 0)
        if unsafe poll(&poller, 1, -1) < 0 && errno != EINTR { return }
        if poller.revents & Int16(POLLNVAL) != 0 { return }
        let got = unsafe Glibc.read(descriptor.rawValue, buffer.baseAddress, buffer.count)
        if got < 0 && errno != EAGAIN && errno != EINTR { return }
        for place in stride(from: 0, to: max(got, 0), by: Self.messageSize)
        where unsafe buffer[place] == UInt8(UFFD_EVENT_PAGEFAULT) {
          unsafe body(buffer.load(fromByteOffset: place + Self.addressOffset, as: UInt.self))
        }
      }
    }
  }
}
