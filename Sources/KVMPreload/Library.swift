// SPDX-License-Identifier: Apache-2.0
//
// libmartlet-kvm.so: loaded before the C library (LD_PRELOAD), it implements `/dev/kvm` for an
// unmodified client. The client's calls of `open` and `ioctl` reach the hypervisor in this process;
// vCPUs run on the client's own threads.
//
//     client:  fd = open("/dev/kvm")   -> Exports+Open    -> Library.openDevice
//              ioctl(fd, KVM_...)      -> Exports+Descriptors -> Library.call -> Hypervisor
//              mmap(vcpu)              -> the kernel: the descriptor is the vCPU's memory file
//              close, dup              -> DescriptorTable
//              sigaction               -> ClientSignals: a signal ends KVM_RUN
//
// Settings come from the environment (`Settings`). Nothing here ends the process; failures return
// -1 and errno.

import CHost
import ClientMemory
import Glibc
import Host
import KVM
import Synchronization
import SystemPackage
import X86
import X86JIT

/// The hypervisor of this process, with the library's state.
final class Library: Sendable {
  let hypervisor: Hypervisor
  private let process: pid_t

  private init() throws(Errno) {
    hypervisor = try Hypervisor(
      physicalCPUs: Settings.physicalCPUs, silicon: Settings.silicon,
      translates: Settings.translates,
      tuning: TranslatorTuning(guardsSpeculation: Settings.guardsSpeculation),
      client: Client.makeMemory(),
      entryFailures: EntryFailureReports(warn: Self.warn, save: Self.saveFailedEntry))
    process = getpid()
    ClientSignals.watchFaults()
  }

  private static let instance = Mutex<Library?>(nil)

  /// The library of this process; a child of fork gets its own. nil if it cannot be created.
  static var current: Library? {
    instance.withLock { instance in
      if let instance, instance.isOwn { return instance }
      // Leak the parent's: its threads are not here.
      if let old = instance {
        _ = unsafe Unmanaged.passRetained(old)
        Hypervisor.forgetParent()
        Client.renewMemory()
      }
      instance = try? Library()
      if let instance {
        let address = unsafe UInt(bitPattern: Unmanaged.passUnretained(instance).toOpaque())
        existingAddress.store(address, ordering: .releasing)
      }
      if Settings.statistics, instance != nil { atexit { Library.printStatistics() } }
      return instance
    }
  }

  /// The address of `instance`, which is never freed: readers may hold its lock already.
  private static let existingAddress = Atomic<UInt>(0)

  /// The library, if this process has created one. Takes no lock.
  static var existing: Library? {
    let address = existingAddress.load(ordering: .acquiring)
    guard let pointer = unsafe UnsafeRawPointer(bitPattern: address) else { return nil }
    let library = unsafe Unmanaged<Library>.fromOpaque(pointer).takeUnretainedValue()
    return library.isOwn ? library : nil
  }

  /// Whether this process created it.
  var isOwn: Bool { process == getpid() }

  // MARK: Opening

  /// open("/dev/kvm").
  static func openDevice(_ flags: Int32) -> Int32 {
    do throws(Errno) {
      guard let library = current else { throw .noMemory }
      let descriptor = try SystemFile.make(flags)
      let file = try KVMFile(.system, handle: library.hypervisor.open(), library: library)
      DescriptorTable.shared.add(descriptor, file)
      return descriptor
    } catch {
      return fail(error.rawValue)
    }
  }

  /// The last descriptor of an object was closed.
  func close(_ handle: Int32) { if isOwn { hypervisor.close(handle) } }

  // MARK: ioctl

  /// An ioctl of KVM on one of its descriptors.
  func call(_ file: KVMFile, _ request: UInt32, _ argument: UInt) -> Int32 {
    do throws(Errno) {
      guard isOwn else { throw .ioError }
      switch file.kind {
      case .virtualCPU(let state):
        if request == CKVM_RUN { return try state.run(argument) }
        return try state.runner.ioctl(request, argument)
      case .system where request == CKVM_CREATE_VM:
        return try install(try file.object.ioctl(request, argument), .machine)
      case .machine where request == CKVM_CREATE_VCPU:
        return try installVirtualCPU(try file.object.ioctl(request, argument))
      case .machine where request == CKVM_IRQFD:
        let result = try file.object.ioctl(request, argument)
        IRQFDEvents.note(argument)
        return result
      default:
        return try file.object.ioctl(request, argument)
      }
    } catch {
      return fail(error.rawValue)
    }
  }

  private func install(_ handle: Int32, _ kind: KVMFile.Kind) throws(Errno) -> Int32 {
    let descriptor = unsafe memfd_create("kvm-vm", UInt32(MFD_CLOEXEC))
    return try add(descriptor, handle, kind)
  }

  private func installVirtualCPU(_ handle: Int32) throws(Errno) -> Int32 {
    guard let runner = try hypervisor.opened(handle).runner else { throw .badFileDescriptor }
    let descriptor = Real.fcntl?(runner.sharedFile, F_DUPFD_CLOEXEC, 0) ?? -1
    return try add(descriptor, handle, .virtualCPU(ClientRun(runner)))
  }

  private func add(
    _ descriptor: Int32, _ handle: Int32, _ kind: KVMFile.Kind
  ) throws(Errno) -> Int32 {
    guard descriptor >= 0 else {
      let error = Errno(rawValue: errno)
      hypervisor.close(handle)
      throw error
    }
    let file = try KVMFile(kind, handle: handle, library: self)
    DescriptorTable.shared.add(descriptor, file)
    return descriptor
  }

  // MARK: Failed VM entries

  @Sendable private static func warn(_ lines: [String]) {
    for line in lines { writeText(STDERR_FILENO, "martlet: warning: \(line)\n") }
  }

  /// Saves to the file that MARTLET_FAILED_ENTRY names.
  @Sendable private static func saveFailedEntry(_ bytes: [UInt8]) {
    guard let path = Settings.failedEntry else { return }
    do throws(Errno) {
      try saveFile(path, bytes)
      warn(["the control structure is in \(path); see martlet doctor --help"])
    } catch {
      warn(["\(path): \(error)"])
    }
  }

  // MARK: The end

  private static func printStatistics() {
    guard let library = instance.withLock({ $0 }), library.isOwn else { return }
    writeText(STDERR_FILENO, library.hypervisor.virtualCPUReport)
  }
}

/// Settings from the environment.
enum Settings {
  /// MARTLET_PCPUS: physical CPUs; the host's if absent.
  static let physicalCPUs: Int? = value("MARTLET_PCPUS").flatMap { Int($0) }
  /// MARTLET_VENDOR=intel or amd: the processors' vendor; the host's if absent.
  static let silicon = value("MARTLET_VENDOR").flatMap { SiliconVendor(rawValue: $0) }
  /// MARTLET_TRANSLATOR=off: hot code stays in the interpreter.
  static let translates = value("MARTLET_TRANSLATOR") != "off"
  /// MARTLET_SPECULATION_GUARD=off: see `TranslatorTuning`.
  static let guardsSpeculation = value("MARTLET_SPECULATION_GUARD") != "off"
  /// MARTLET_CLIENT_WRITES=ignored: the client does not write to memory with code; =compared:
  /// without userfaultfd.
  static let clientWrites: ClientWrites =
    switch value("MARTLET_CLIENT_WRITES") {
    case "ignored": .announced
    case "compared": .compared
    default: .unannounced
    }
  /// MARTLET_STATS=1: exits by reason for each vCPU, on standard error at the end.
  static let statistics = value("MARTLET_STATS") == "1"

  /// MARTLET_FAILED_ENTRY: file for the first control structure that the processor rejects.
  static let failedEntry: String? = value("MARTLET_FAILED_ENTRY")

  private static func value(_ name: String) -> String? {
    unsafe getenv(name).map { unsafe String(cString: $0) }
  }
}
