// SPDX-License-Identifier: Apache-2.0
//
// The parts of a crash report. All of it runs in a signal handler.

import CHost
import Glibc
import Host

@safe struct Report {
  var writer: ReportWriter
  let number: Int32
  let information: UnsafeMutablePointer<siginfo_t>?
  let context: UnsafeMutableRawPointer?

  /// Registers of a signal's context, in the kernel's order (REG_R8 ... REG_RIP).
  private static let registers: [StaticString] = [
    "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15", "RDI", "RSI", "RBP", "RBX", "RDX",
    "RAX", "RCX", "RSP", "RIP",
  ]
  private static let framePointer = 10

  private func register(_ index: Int) -> UInt {
    unsafe context.map { unsafe ($0 + GuardedCopy.Registers.offset(index)).load(as: UInt.self) }
      ?? 0
  }

  private var counter: UInt { register(GuardedCopy.Registers.rip) }

  mutating func write(hasFile: Bool) {
    writer.put("\nmartlet crash report\nversion: ")
    unsafe writer.put(cString: CrashReporter.programText)
    writer.put("\nprocessor: ")
    unsafe writer.put(cString: CrashReporter.modelText)
    writer.put("\n")
    writeSignal()
    writeRegisters()
    writer.flush()
    let isOurs = writeGuests()
    writer.flush()
    writeBacktrace()
    if !isOurs { writer.put("guest: this thread was in none\n") }
    if hasFile {
      writer.put("This report is in martlet-crash-")
      writer.put(decimal: Int(getpid()))
      writer.put(".txt, in the folder where the program was started, or in TMPDIR, or in /tmp.\n")
    }
    writer.put(
      "Please attach it to a bug report; docs/security.md, \"Reporting a crash\", says how.\n")
    writer.flush()
  }

  private mutating func writeSignal() {
    writer.put("signal: ")
    writer.put(CrashReporter.signalName(number))
    if let information = unsafe information {
      writer.put(", code ")
      unsafe writer.put(decimal: Int(information.pointee.si_code))
      // For SIGSYS the call's number follows the instruction's address.
      let raw = UnsafeRawPointer(information)
      if number == SIGSYS {
        let call = unsafe raw.load(fromByteOffset: 24, as: Int32.self)
        writer.put(", the sandbox does not allow the system call ")
        if let name = unsafe SystemCallFilter.name(call) { unsafe writer.put(cString: name) }
        writer.put(" (")
        writer.put(decimal: Int(call))
        writer.put("); --sandbox off switches it off")
      } else if unsafe information.pointee.si_code > 0 {
        writer.put(", address 0x")
        unsafe writer.put(hex: raw.load(fromByteOffset: 16, as: UInt64.self))
      }
    }
    writer.put("\nthread: ")
    var name = InlineArray<4, UInt64>(repeating: 0)
    let named = unsafe withUnsafeMutablePointer(to: &name) {
      chost_syscall(Int(SYS_prctl), Int(PR_GET_NAME), Int(bitPattern: $0), 0, 0, 0, 0)
    }
    unsafe withUnsafePointer(to: &name) {
      if named == 0 {
        unsafe writer.put(cString: UnsafeRawPointer($0).assumingMemoryBound(to: CChar.self))
      }
    }
    writer.put("\n")
  }

  private mutating func writeRegisters() {
    writer.put("registers:\n")
    for index in 0..<Self.registers.count {
      writer.put(" ")
      writer.put(Self.registers[index])
      writer.put(" ")
      writer.put(hex: UInt64(register(index)), digits: 16)
      if index % 4 == 3 || index == Self.registers.count - 1 { writer.put("\n") }
    }
  }

  // MARK: Guests

  /// Writes the CPUs that this thread had last; returns whether there are any.
  private mutating func writeGuests() -> Bool {
    guard let describer = unsafe CrashRecords.describer else { return false }
    let own = UInt(pthread_self())
    var found = false
    for index in 0..<CrashRecords.capacity {
      let record = unsafe CrashRecords.table + index
      if unsafe record.pointee.state == 0 || record.pointee.thread != own { continue }
      found = true
      var place = GuestPlace()
      unsafe withUnsafeMutablePointer(to: &place) {
        unsafe describer(record.pointee.state, counter, UnsafeMutableRawPointer($0))
      }
      writer.put("guest: physical CPU ")
      writer.put(decimal: index)
      unsafe writer.put(
        record.pointee.isInGuest ? ", in guest code\n" : ", outside of guest code\n")
      write(place)
      unsafe writeExits(record)
    }
    return found
  }

  private mutating func write(_ place: GuestPlace) {
    writer.line("  guest RIP:", hex: place.rip)
    writeBytes("  bytes there:", place.bytes)
    writer.line("  block at RIP:", hex: place.blockRIP)
    writer.put("  CS ")
    writer.put(hex: UInt64(place.cs))
    writer.put(" base ")
    writer.put(hex: place.csBase)
    writer.put(" CPL ")
    writer.put(decimal: Int(place.cpl))
    writer.put(" CR0 ")
    writer.put(hex: place.cr0)
    writer.put(" CR3 ")
    writer.put(hex: place.cr3)
    writer.put(" CR4 ")
    writer.put(hex: place.cr4)
    writer.put(" EFER ")
    writer.put(hex: place.efer)
    writer.put("\n")
    guard place.isTranslated else { return }
    writer.put("  the fault is in translated code")
    if place.translation == 0 { return writer.put("\n") }
    writer.put(", 0x")
    writer.put(hex: UInt64(counter &- place.translation))
    writer.put(" behind the beginning of the translation\n")
    writer.line("  of the block at linear address:", hex: place.translatedLinear)
    writeBytes("  bytes of that block:", place.translatedBytes)
  }

  private mutating func writeBytes(_ name: StaticString, _ address: UInt) {
    writer.put(name)
    var bytes = InlineArray<16, UInt8>(repeating: 0)
    let isThere =
      unsafe address != 0
      && withUnsafeMutablePointer(to: &bytes) { unsafe CarefulRead.copy(address, $0, 16) }
    if !isThere { writer.put(" unknown") }
    for index in 0..<(isThere ? 16 : 0) {
      writer.put(" ")
      writer.put(hex: UInt64(bytes[index]), digits: 2)
    }
    writer.put("\n")
  }

  private mutating func writeExits(_ record: UnsafeMutablePointer<CrashRecord>) {
    writer.put("  last exits, the latest first:\n")
    let count = unsafe record.pointee.exits
    var back: UInt64 = 1
    while back <= count, back <= UInt64(CrashRecord.exitCount) {
      let place = Int((count - back) % UInt64(CrashRecord.exitCount))
      writer.put("    ")
      if let name = unsafe CrashReporter.exitName(record.pointee.reasons[place]) {
        unsafe writer.put(cString: name)
      }
      writer.put(" at 0x")
      unsafe writer.put(hex: record.pointee.addresses[place])
      writer.put("\n")
      back += 1
    }
  }

  // MARK: Backtrace

  /// Follows frame pointers, which Swift keeps. Translated code has the guest's RBP, so the
  /// backtrace ends there.
  private mutating func writeBacktrace() {
    writer.put("backtrace (names as `swift demangle` reads them):\n")
    writeFrame(counter)
    var frame = register(Self.framePointer)
    var depth = 0
    while depth < 64, frame != 0, frame & 7 == 0 {
      guard let next = CarefulRead.word(frame), let caller = CarefulRead.word(frame &+ 8) else {
        break
      }
      if caller == 0 { break }
      writeFrame(caller)
      if next <= frame { break }
      frame = next
      depth += 1
    }
  }

  private mutating func writeFrame(_ address: UInt) {
    writer.put("  0x")
    writer.put(hex: UInt64(address), digits: 12)
    if let symbol = unsafe CrashReporter.symbol(address) {
      writer.put(" ")
      unsafe writer.put(cString: symbol.name)
      writer.put(" + ")
      unsafe writer.put(decimal: Int(truncatingIfNeeded: symbol.offset))
    }
    writer.put("\n")
  }
}
