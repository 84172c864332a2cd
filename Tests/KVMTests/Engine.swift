// SPDX-License-Identifier: Apache-2.0
//
// Which KVM a test runs on: ours, and the kernel's where there is one. The tests of a suite with the
// trait `.onBothEngines` run on each, one after the other; where the kernel's KVM is known to differ,
// `KernelDifferences` says who is right.

import CHost
import Glibc
import Host
import KVM
import KVMClient
import KVMLoopback
import SystemPackage
import Testing

enum Engine: String, CaseIterable, CustomTestStringConvertible {
  case software
  case kernel

  var testDescription: String { rawValue }

  /// The one that the running test is to use.
  @TaskLocal static var current = Engine.software

  /// The kernel's only where it can be opened.
  static var available: [Engine] {
    access("/dev/kvm", R_OK | W_OK) == 0 ? [.software, .kernel] : [.software]
  }

  func transport(
    physicalCPUs: Int = 1, translates: Bool = false
  ) throws(Errno) -> any KVMTransport {
    if self == .software {
      return try LoopbackTransport(physicalCPUs: physicalCPUs, translates: translates)
    }
    KickSignal.unblock()
    return DeviceTransport()
  }
}

/// Runs each test on every KVM that there is.
struct BothEngines: SuiteTrait, TestTrait, TestScoping {
  var isRecursive: Bool { true }

  func provideScope(
    for test: Test, testCase: Test.Case?, performing function: @Sendable () async throws -> Void
  ) async throws {
    guard testCase != nil else { return try await function() }
    try await Engine.$current.withValue(.software) { try await function() }
    guard Engine.available.contains(.kernel) else { return }
    let name = String(test.name.prefix { $0 != "(" })
    switch KernelDifferences.table[name] {
    case nil: try await Engine.$current.withValue(.kernel) { try await function() }
    case .notThere: break
    case .differs(let reason):
      await withKnownIssue(Comment(rawValue: reason), isIntermittent: true) {
        try await Engine.$current.withValue(.kernel) { try await function() }
      }
    }
  }
}

extension Trait where Self == BothEngines {
  static var onBothEngines: Self { BothEngines() }
}

/// Tests, by name, whose outcome on a kernel's KVM may be another.
enum KernelDifferences {
  enum Difference {
    /// The test looks into our KVM.
    case notThere
    /// Who is right, and by which words.
    case differs(String)
  }

  /// A KVM of the kernel's whose processor has no VT-x or SVM emulates what runs in the guest's
  /// kernel mode, all of real mode among it.
  private static let emulator = "a KVM that emulates the guest's kernel mode"

  static let table: [String: Difference] = [
    // Guest debug: the manual's answer (SDM volume 3, "Debug Exceptions") is expected here.
    "stepsOverEveryKindOfInstruction": .differs("\(emulator) makes no step of emulated exits"),
    "softwareBreakpoint": .differs("\(emulator) runs INT3 itself; KVM_EXIT_DEBUG is documented"),
    "registersInTheSharedPage": .differs("\(emulator) shows RIP behind an OUT; both are allowed"),
    "memoryMappedAccessIsOneStep": .differs("\(emulator) makes no step of MMIO"),
    "hardwareBreakpoints": .differs("\(emulator) does not match addresses in it"),
    "generalDetect": .differs("\(emulator) ignores DR7.GD"),
    "blockedInterruptsComeLater": .differs("\(emulator) makes no step in an interrupt shadow"),
    // Interrupts and priorities.
    "loweredPriorityLeaves": .differs(
      "\(emulator) has no MOV to CR8; KVM_EXIT_SET_TPR is documented"),
    "reportsOfThePriorityRegister": .differs("\(emulator) reports no TPR access"),
    "interruptsWithoutChips": .differs("\(emulator) opens no interrupt window after STI"),
    "correctedErrorInterrupt": .differs(
      "CMCI is offered where MCG_CMCI_P is: a processor's choice"),
    // Instructions.
    "otherVendorsHypercall": .differs(
      "\(emulator) patches hypercalls for ever; one patch is meant"),
    "hypercallForTheClient": .notThere,
    "hypercallWakesNextHalt": .notThere,
    "hypercallSendsInterrupts": .notThere,
    "interruptEndsByBit": .differs("\(emulator) may leave every end an exit"),
    "bitGoesOnTheWayOut": .differs("\(emulator) may leave every end an exit"),
    "monitorAndWait": .differs("\(emulator) has no MONITOR; the quirk says that it does nothing"),
    "batchesOfStringIO": .differs("how many items an exit has is KVM's choice"),
    // State whose values before the first run are a KVM's choice.
    "fpu": .differs("Linux leaves kvm_fpu.mxcsr alone; the documentation has it"),
    "xsaveCarriesEveryComponent": .differs("XSTATE_BV may leave out what is in its initial state"),
    "extendedControlRegister": .differs("newer kernels want KVM_SET_CPUID2 before XCR0"),
    "controlBitsBeforeCPUID": .differs("kernels differ in what CR4 may have before CPUID"),
    "offsetOfTheCounter": .differs(
      "a TSC that cannot be offset; KVM_VCPU_TSC_OFFSET is documented"),
    "expiredTimerIsInTheImage": .differs(
      "Linux shows its interrupt from the next KVM_RUN on, and a restored count of 0 expires again"),
    "statistics": .differs("which statistics there are is a KVM's choice"),
    "missedTicksFollow": .differs("\(emulator) takes few of the interrupts in the guest's time"),
    "taskSwitchIsLogged": .differs("\(emulator) makes no task switch"),
    "statisticsWhileItRuns": .differs("which statistics there are is a KVM's choice"),
    "portSevenE": .differs("\(emulator) shows RIP behind every OUT; the quirk is about one"),
    // Rules that came with later kernels.
    "wideDestinations": .differs("KVM_CAP_X2APIC_API has more flags in later kernels"),
    "haltsInGuestMode": .differs("later kernels want KVM_CAP_X86_DISABLE_EXITS before vCPUs"),
    "largestProcessorNumber": .differs("later kernels want KVM_CAP_MAX_VCPU_ID once, before vCPUs"),
    // These look into our KVM, or take minutes.
    "signalMask": .notThere,
    "ring": .notThere,
    "fullRing": .notThere,
    "manySlots": .notThere,
    "fourCPUsShareOne": .notThere,
    "writesByTheHypervisorCount": .differs(
      "Linux writes the clock with the first run, not at once"),
  ]
}
