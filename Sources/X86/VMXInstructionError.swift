// SPDX-License-Identifier: Apache-2.0
//
// Error numbers of failed VMX instructions and of VMX aborts.

/// VM-instruction error numbers (SDM volume 3, "VM Instruction Error Numbers"): VMfailValid stores
/// them in the VM-instruction error field.
public enum VMXInstructionError: UInt32, Sendable, Hashable {
  case vmcallInRootOperation = 1
  case vmclearInvalidAddress = 2
  case vmclearVMXONPointer = 3
  case vmlaunchNonClear = 4
  case vmresumeNonLaunched = 5
  case vmresumeAfterVMXOFF = 6
  case invalidControlFields = 7
  case invalidHostState = 8
  case vmptrldInvalidAddress = 9
  case vmptrldVMXONPointer = 10
  case vmptrldIncorrectRevision = 11
  case unsupportedField = 12
  case vmwriteReadOnlyField = 13
  case vmxonInRootOperation = 15
  case invalidExecutiveVMCS = 16
  case nonLaunchedExecutiveVMCS = 17
  case executiveVMCSNotVMXON = 18
  case vmcallNonClear = 19
  case vmcallInvalidExitControls = 20
  case vmcallIncorrectMSEGRevision = 22
  case vmxoffUnderDualMonitor = 23
  case vmcallInvalidSMMMonitor = 24
  case invalidControlsInExecutiveVMCS = 25
  case eventsBlockedByMovSS = 26
  case invalidOperandToInvalidate = 28
}

/// VMX-abort indicators (SDM volume 3, "VMX Aborts").
public enum VMXAbortIndicator: UInt32, Sendable, Hashable {
  case savingGuestMSRs = 1
  case hostPDPTEs = 2
  case corruptVMCS = 3
  case loadingHostMSRs = 4
  case machineCheckDuringExit = 5
  case legacyHostFrom64Bit = 6
}
