// SPDX-License-Identifier: Apache-2.0
//
// Detects whether code has changed since it was decoded. Its memory may be written without notice
// (by another process, a device), so it is read once into a buffer for decoding, and once for
// translation: a block whose bytes then have another signature is not translated.
//
// The hash is keyed per process, so no guest can forge a collision.

package enum CodeSignature {
  package static func of(_ bytes: UnsafeRawBufferPointer) -> Int {
    var hasher = Hasher()
    hasher.combine(bytes: bytes)
    return hasher.finalize()
  }
}
