// SPDX-License-Identifier: Apache-2.0

/// Names of instructions as the manuals spell them, lower case. Conditional instructions have one
/// name for each condition (`jz`, `setnle`, `cmovb`), in the spelling o, no, b, nb, z, nz, be, nbe,
/// s, ns, p, np, l, nl, le, nle.
public enum Mnemonic: UInt16, Sendable, CaseIterable {
  case invalid = 0
  case nop
}
