// SPDX-License-Identifier: Apache-2.0
//
// Names of exit reasons for statistics and crash reports.

extension ExitReason {
  /// The reason's name in this code; its number if it has none.
  public var name: String {
    Self.names.indices.contains(Int(rawValue)) ? Self.names[Int(rawValue)] : "reason \(rawValue)"
  }

  private static let names = [
    "exceptionOrNMI", "externalInterrupt", "tripleFault", "initSignal", "startupIPI", "ioSMI",
    "otherSMI", "interruptWindow", "nmiWindow", "taskSwitch", "cpuid", "getsec", "hlt", "invd",
    "invlpg", "rdpmc", "rdtsc", "rsm", "vmcall", "vmclear", "vmlaunch", "vmptrld", "vmptrst",
    "vmread", "vmresume", "vmwrite", "vmxoff", "vmxon", "controlRegisterAccess",
    "debugRegisterAccess", "ioInstruction", "rdmsr", "wrmsr", "invalidGuestState", "msrLoading",
    "reason 35", "mwait", "monitorTrapFlag", "reason 38", "monitor", "pause",
    "machineCheckDuringEntry", "reason 42", "tprBelowThreshold", "apicAccess", "virtualizedEOI",
    "gdtrOrIDTRAccess", "ldtrOrTRAccess", "eptViolation", "eptMisconfiguration", "invept",
    "rdtscp", "preemptionTimer", "invvpid", "wbinvd", "xsetbv", "apicWrite", "rdrand", "invpcid",
    "vmfunc", "encls", "rdseed", "pmlFull", "xsaves", "xrstors", "reason 65", "spp", "umwait",
    "tpause", "loadiwkey", "reason 70", "reason 71", "enqcmdPASID", "enqcmdsPASID", "busLock",
    "notify",
  ]
}
