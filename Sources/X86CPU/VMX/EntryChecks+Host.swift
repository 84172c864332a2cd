// SPDX-License-Identifier: Apache-2.0
//
// Checks on the host-state area: a failure is VMfailValid with error 8. Only EFER and PAT are
// loaded from it (the host is a program), but everything is checked as on a real processor.

import X86

extension EntryChecks {
  func checkHostState() throws(EntryFailure) {
    try checkHostRegisters()
    try checkHostSegments()
    let is64Bit = exit & ExitControls.hostAddressSpaceSize != 0
    try require(is64Bit == limits.isHost64Bit, .hostAddressSpaceSize)
    if is64Bit {
      try require(page(.hostCR4) & CR4.pae.rawValue != 0, .hostPAE)
      try require(Self.isCanonical(page(.hostRIP)), .hostRIP)
    } else {
      try require(!isLongModeGuest, .hostAddressSpaceSize)
      try require(page(.hostCR4) & CR4.pcide.rawValue == 0, .hostAddressSpaceSize)
      try require(page(.hostRIP) >> 32 == 0, .hostRIP)
    }
  }

  private func checkHostRegisters() throws(EntryFailure) {
    let cr0 = page(.hostCR0)
    try require(
      cr0 & limits.cr0Fixed.ones == limits.cr0Fixed.ones && cr0 & ~limits.cr0Fixed.allowed == 0,
      .hostCR0)
    let cr4 = page(.hostCR4)
    try require(
      cr4 & limits.cr4Fixed.ones == limits.cr4Fixed.ones && cr4 & ~limits.cr4Fixed.allowed == 0,
      .hostCR4)
    try require(page(.hostCR3) >> limits.physicalWidth == 0, .hostCR3)
    for field in [VMCSField.hostSysenterESP, .hostSysenterEIP] {
      try require(Self.isCanonical(page(field)), .hostSysenter, at: .field(field))
    }
    if exit & ExitControls.loadPAT != 0 { try require(Self.isPAT(page(.hostPAT)), .hostPAT) }
    if exit & ExitControls.loadEFER != 0 {
      let efer = page(.hostEFER)
      try require(efer & ~Self.eferBits == 0, .hostEFERReserved)
      let is64 = exit & ExitControls.hostAddressSpaceSize != 0
      let mode = EFER([.lma, .lme]).rawValue
      try require(efer & mode == (is64 ? mode : 0), .hostEFERMode)
    }
  }

  private func checkHostSegments() throws(EntryFailure) {
    let selectors: InlineArray<7, VMCSField> = [
      .hostESSelector, .hostCSSelector, .hostSSSelector, .hostDSSelector, .hostFSSelector,
      .hostGSSelector, .hostTRSelector,
    ]
    for n in selectors.indices {
      try require(page(selectors[n]) & 7 == 0, .hostSelector, at: .field(selectors[n]))
    }
    try require(
      page(.hostCSSelector) != 0 && page(.hostTRSelector) != 0
        && (page(.hostSSSelector) != 0 || exit & ExitControls.hostAddressSpaceSize != 0),
      .hostNullSelector)
    let bases: InlineArray<5, VMCSField> = [
      .hostFSBase, .hostGSBase, .hostGDTRBase, .hostIDTRBase, .hostTRBase,
    ]
    for n in bases.indices {
      try require(Self.isCanonical(page(bases[n])), .hostBase, at: .field(bases[n]))
    }
  }
}
