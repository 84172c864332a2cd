// SPDX-License-Identifier: Apache-2.0
//
// Which descriptors of the process are KVM's.
//
// Each KVM object has a file in memory (memfd), which the client's descriptors refer to. So the
// kernel handles duplicates, inheritance over fork and exec, passing to other processes, poll, and
// the mapping of a vCPU's pages. The table stores descriptor numbers. An unknown one (created by a
// raw system call, or received) is recognised by its file.

import CHost
import Glibc
import Host
import KVM
import SystemPackage

/// The object behind a KVM descriptor.
final class KVMFile: Sendable {
  enum Kind: Sendable {
    /// `/dev/kvm`.
    case system
    case machine
    case virtualCPU(ClientRun)
  }

  let kind: Kind
  /// The hypervisor's object, without a handle look-up.
  let object: OpenObject
  let library: Library
  private let handle: Int32

  /// Takes ownership of the handle.
  ///
  /// - Throws: EBADF if the hypervisor does not have it.
  init(_ kind: Kind, handle: Int32, library: Library) throws(Errno) {
    self.kind = kind
    self.handle = handle
    self.library = library
    object = try library.hypervisor.opened(handle)
  }

  deinit { library.close(handle) }
}

extension FileIdentity {
  init?(_ descriptor: Int32) {
    var status = stat()
    guard let real = unsafe Real.fstat, unsafe real(descriptor, &status) == 0 else { return nil }
    self.init(device: UInt(status.st_dev), node: UInt(status.st_ino))
  }
}

extension DescriptorTable {
  /// All its objects are KVMFiles.
  static let shared = DescriptorTable()

  /// The first descriptor of a file.
  func add(_ descriptor: Int32, _ file: KVMFile) {
    let identity = FileIdentity(descriptor) ?? FileIdentity(device: 0, node: 0)
    add(descriptor, DescribedFile(identity, file))
  }

  /// The file of a descriptor for an ioctl of KVM.
  func file(_ descriptor: Int32) -> KVMFile? {
    if let file = known(descriptor) { return file }
    guard let identity = FileIdentity(descriptor) else { return nil }
    if let known = file(identity) {
      add(descriptor, known)
      return unsafe unsafeDowncast(known.object, to: KVMFile.self)
    }
    return SystemFile.adopt(descriptor)
  }

  /// The file of a descriptor, if the table has it.
  func known(_ descriptor: Int32) -> KVMFile? {
    held(descriptor).map { unsafe unsafeDowncast($0.object, to: KVMFile.self) }
  }
}

/// The file behind a descriptor of `/dev/kvm`: its text identifies it in a process that got the
/// descriptor by exec or by message.
enum SystemFile {
  private static let text: StaticString = "martlet: /dev/kvm"

  /// A new descriptor.
  static func make(_ flags: Int32) throws(Errno) -> Int32 {
    let cloexec = flags & O_CLOEXEC != 0 ? UInt32(MFD_CLOEXEC) : 0
    let descriptor = unsafe memfd_create("kvm", cloexec)
    guard descriptor >= 0 else { throw Errno(rawValue: errno) }
    _ = unsafe pwrite(descriptor, text.utf8Start, text.utf8CodeUnitCount, 0)
    return descriptor
  }

  static func adopt(_ descriptor: Int32) -> KVMFile? {
    let count = text.utf8CodeUnitCount
    var buffer = InlineArray<32, UInt8>(repeating: 0)
    let isOurs = unsafe withUnsafeMutableBytes(of: &buffer) { bytes in
      unsafe pread(descriptor, bytes.baseAddress!, count, 0) == count
        && memcmp(bytes.baseAddress!, text.utf8Start, count) == 0
    }
    guard isOurs, let library = Library.current,
      let file = try? KVMFile(.system, handle: library.hypervisor.open(), library: library)
    else { return nil }
    DescriptorTable.shared.add(descriptor, file)
    return file
  }
}
