// SPDX-License-Identifier: Apache-2.0
//
// Which KVM a test runs on: ours, with VT-x and with SVM, and the kernel's where there is one. The
// tests of a suite with the trait `.onBothEngines` run on each, one after the other; where the
// kernel's KVM is known to differ, `KernelDifferences` says who is right, and `VendorDifferences`
// what AMD's processor does not have.

import CHost
import Foundation
import Glibc
import Host
import HostTestSupport
import KVM
import KVMClient
import KVMLoopback
import Synchronization
import SystemPackage
import Testing
import X86

enum Engine: String, CaseIterable, CustomTestStringConvertible {
  case software
  case kernel

  var testDescription: String { rawValue }

  /// The one that the running test is to use.
  @TaskLocal static var current = Engine.software

  /// Whose processors ours has in the running test.
  @TaskLocal static var vendor = SiliconVendor.intel

  /// The kernel's only where it can be opened.
  static let available: [Engine] = {
    if KernelKVM.kind != nil { return [.software, .kernel] }
    Skips.note("arguments of tests on the kernel's KVM", KernelKVM.missing)
    return [.software]
  }()

  func transport(
    physicalCPUs: Int = 1, translates: Bool = false
  ) throws(Errno) -> any KVMTransport {
    if self == .software {
      return try LoopbackTransport(
        physicalCPUs: physicalCPUs, silicon: Engine.vendor, translates: translates)
    }
    KickSignal.unblock()
    return DeviceTransport()
  }
}

/// Runs each test on every KVM that there is, and on ours with either vendor's processors.
struct BothEngines: SuiteTrait, TestTrait, TestScoping {
  var isRecursive: Bool { true }

  func provideScope(
    for test: Test, testCase: Test.Case?, performing function: @Sendable () async throws -> Void
  ) async throws {
    guard testCase != nil else { return try await function() }
    try await Engine.$current.withValue(.software) { try await function() }
    let name = String(test.name.prefix { $0 != "(" })
    if let reason = VendorDifferences.table[name] {
      Skips.note("\(name) on AMD's processor", reason)
    } else {
      try await Engine.$vendor.withValue(.amd) { try await function() }
    }
    guard let kind = KernelKVM.kind else {
      return Skips.note("\(name) on the kernel's KVM", KernelKVM.missing)
    }
    switch KernelDifferences.table[name] {
    case .notThere(let reason): Skips.note("\(name) on the kernel's KVM", reason)
    case .emulating(let reason) where kind == .emulating:
      try await Self.differs(reason) {
        try await Engine.$current.withValue(.kernel) { try await function() }
      }
    case .emulating, nil: try await Engine.$current.withValue(.kernel) { try await function() }
    }
  }

  /// Strict: a difference that is listed has to show. Some depend on when the host interrupts the
  /// guest, so that there are several tries.
  private static func differs(
    _ reason: String, _ test: @Sendable () async throws -> Void
  ) async throws {
    let shown = Flag()
    for _ in 0..<8 where !shown.isSet {
      try await withKnownIssue(Comment(rawValue: reason), isIntermittent: true) {
        try await test()
      } matching: { _ in
        shown.set()
        return true
      }
    }
    if !shown.isSet { Issue.record("a difference that is listed does not show: \(reason)") }
  }
}

private final class Flag: Sendable {
  private let value = Atomic<Bool>(false)
  var isSet: Bool { value.load(ordering: .relaxed) }
  func set() { value.store(true, ordering: .relaxed) }
}

extension Trait where Self == BothEngines {
  static var onBothEngines: Self { BothEngines() }
}

/// Tests, by name, that do not run on a kernel's KVM, or fail there.
enum KernelDifferences {
  enum Difference {
    /// Not a test of the kernel's KVM, and why.
    case notThere(String)
    /// Fails on a KVM that emulates a guest's supervisor code, all of real mode among it, for want
    /// of VT-x or SVM: what it does, and by which words another answer is expected. On real
    /// hardware no test is known to fail.
    case emulating(String)
  }

  private static let inside: Difference = .notThere("looks into this package's KVM")
  private static func choice(_ text: String) -> Difference {
    .notThere("a KVM's choice: \(text)")
  }

  static let table: [String: Difference] = [
    // Guest debug: the manual's answer (SDM volume 3, "Debug Exceptions") is expected here.
    "stepsOverEveryKindOfInstruction": .emulating("no step of emulated exits"),
    "softwareBreakpoint": .emulating("runs INT3 itself; KVM_EXIT_DEBUG is documented"),
    "registersInTheSharedPage": .emulating("shows RIP behind an OUT; both are allowed"),
    "memoryMappedAccessIsOneStep": .emulating("no step of MMIO"),
    "hardwareBreakpoints": .emulating("matches no addresses"),
    "generalDetect": .emulating("ignores DR7.GD"),
    "blockedInterruptsComeLater": .emulating("no step in an interrupt shadow"),
    // Interrupts and priorities.
    "loweredPriorityLeaves": .emulating("no MOV to CR8; KVM_EXIT_SET_TPR is documented"),
    "reportsOfThePriorityRegister": .emulating("reports no TPR access"),
    "interruptsWithoutChips": .emulating("opens no interrupt window after STI"),
    "interruptEndsByBit": .emulating("leaves every end an exit, which is allowed"),
    "bitGoesOnTheWayOut": .emulating("leaves every end an exit, which is allowed"),
    "missedTicksFollow": .emulating("takes few of the interrupts in the guest's time"),
    // Instructions.
    "otherVendorsHypercall": .emulating("patches hypercalls for ever; one patch is meant"),
    "monitorAndWait": .emulating("no MONITOR; the quirk says that it does nothing"),
    "haltsInGuestMode": .emulating("leaves at HLT, though KVM_CAP_X86_DISABLE_EXITS is taken"),
    "taskSwitchIsLogged": .emulating("makes no task switch"),
    "portSevenE": .emulating("shows RIP behind every OUT; the quirk is about one"),
    "offsetOfTheCounter": .emulating(
      "a TSC that cannot be offset; KVM_VCPU_TSC_OFFSET is documented"),
    // What kernels and processors differ in.
    "correctedErrorInterrupt": choice("CMCI is offered where MCG_CMCI_P is"),
    "batchesOfStringIO": choice("how many items an exit has"),
    "fpu": choice("Linux leaves kvm_fpu.mxcsr alone"),
    "xsaveCarriesEveryComponent": choice("XSTATE_BV without what is in its initial state"),
    "extendedControlRegister": choice("whether XCR0 needs KVM_SET_CPUID2 first"),
    "controlBitsBeforeCPUID": choice("what CR4 may have before CPUID"),
    "expiredTimerIsInTheImage": choice("when an expired timer's interrupt shows"),
    "statistics": choice("which statistics there are"),
    "statisticsWhileItRuns": choice("which statistics there are"),
    "writesByTheHypervisorCount": choice("when the clock is written first"),
    // These look into our KVM, or take minutes.
    "hypercallForTheClient": inside,
    "hypercallWakesNextHalt": inside,
    "hypercallSendsInterrupts": inside,
    "bitIsNotOfferedForLevels": choice("Linux looks for a pin that sends the vector"),
    "signalMask": inside,
    "ring": inside,
    "fullRing": inside,
    "manySlots": inside,
    "fourCPUsShareOne": inside,
  ]
}

/// Tests, by name, of what AMD's processor does not have.
enum VendorDifferences {
  static let table: [String: String] = [:]
}

@Suite struct KernelDifferenceTests {
  /// A test that was renamed would lose its line.
  @Test func everyLineNamesATest() throws {
    let directory = Command.package + "/Tests/KVMTests"
    let files = try FileManager.default.contentsOfDirectory(atPath: directory)
    let text = try files.filter { $0.hasSuffix(".swift") }.map {
      try String(contentsOfFile: directory + "/" + $0, encoding: .utf8)
    }.joined()
    for name in Array(KernelDifferences.table.keys) + Array(VendorDifferences.table.keys) {
      #expect(text.contains("func \(name)("), "no test is called \(name)")
    }
  }
}
