// SPDX-License-Identifier: Apache-2.0
//
// What tells whether code is still what it was when it was decoded. Its memory may be written by
// those who tell nobody (another process, a device), so it is read once to be decoded, into a
// buffer, and once to be translated: a block whose bytes have another signature then is not
// translated.
//
// The hash has a key of this process, so that no guest can make two codes with the same one.

package enum CodeSignature {
  package static func of(_ bytes: UnsafeRawBufferPointer) -> Int {
    var hasher = Hasher()
    hasher.combine(bytes: bytes)
    return hasher.finalize()
  }
}
