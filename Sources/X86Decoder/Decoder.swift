// SPDX-License-Identifier: Apache-2.0

import X86

/// Bytes to `Instruction`.
public enum Decoder {
  /// Decodes the instruction at the start of `bytes`.
  ///
  /// - Parameters:
  ///   - bytes: The instruction's bytes and whatever follows them; at least one.
  ///   - mode: What the current code segment is.
  /// - Throws: `.truncated` where `bytes` end inside the instruction.
  public static func decode(
    _ bytes: UnsafeRawBufferPointer, mode: CodeMode
  ) throws(DecodeError) -> Instruction {
    throw .invalidOpcode
  }
}
