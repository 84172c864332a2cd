// SPDX-License-Identifier: Apache-2.0
//
// The rules of VMRUN, one case each, in the manual's order: a broken rule ends in VMEXIT_INVALID,
// and tests and users can ask for it.

/// The rule that a VMRUN broke (APM volume 2, "Canonicalization and Consistency Checks").
package enum VMRunFailure: String, Error, Sendable, Hashable, CaseIterable {
  case eferSVME = "EFER.SVME must be 1"
  case cr0NotWriteThrough = "CR0.NW must not be 1 while CR0.CD is 0"
  case cr0Upper = "CR0 bits 63:32 must be 0"
  case cr3 = "reserved bits of CR3 must be 0"
  case cr4 = "reserved bits of CR4 must be 0"
  case dr6 = "DR6 bits 63:32 must be 0"
  case dr7 = "DR7 bits 63:32 must be 0"
  case eferReserved = "reserved bits of EFER must be 0"
  case longModeWithoutPAE = "if EFER.LME and CR0.PG are 1, CR4.PAE must be 1"
  case longModeWithoutProtection = "if EFER.LME and CR0.PG are 1, CR0.PE must be 1"
  case longAndBigCode = "CS must not have both L and D while EFER.LME, CR0.PG and CR4.PAE are 1"
  case vmrunNotIntercepted = "the VMRUN intercept must be 1"
  case permissionMaps = "the permission maps must lie within the physical-address width"
  case injectionType = "the injected event's type must not be reserved"
  case injectionVector = "an injected exception's vector must be one of an exception, not 2"
  case asid = "the guest ASID must be 1 or more, and less than the number of ASIDs"
  case nestedCR3 = "reserved bits of N_CR3 must be 0"
  case guestPAT = "every byte of G_PAT must be a memory type, with nested paging"

  /// The manual's section.
  package var section: String {
    switch self {
    case .injectionType, .injectionVector: "APM volume 2, \"Event Injection\""
    case .nestedCR3, .guestPAT: "APM volume 2, \"Nested Paging and VMRUN/#VMEXIT\""
    default: "APM volume 2, \"Canonicalization and Consistency Checks\""
    }
  }
}
