// SPDX-License-Identifier: Apache-2.0
//
// The guest that runs if no kernel is given; its source is Guests/builtin.S.

/// A guest in this program, for machines without a Linux at hand: it starts in real mode.
package struct BuiltInGuest: Sendable {
  /// The bytes of its image.
  package let image: [UInt8]
  /// The guest-physical load address, and the first CPU's entry point.
  package let loadAddress: UInt64
  package let entrySegment: UInt16
  package let entryOffset: UInt16

  package init(image: [UInt8], loadAddress: UInt64, entrySegment: UInt16, entryOffset: UInt16) {
    self.image = image
    self.loadAddress = loadAddress
    self.entrySegment = entrySegment
    self.entryOffset = entryOffset
  }

  /// The guest that runs if no kernel is given.
  package static let standard: BuiltInGuest? = BuiltInGuest(
    image: builtInGuestImage, loadAddress: 0x8000, entrySegment: 0, entryOffset: 0x8000)
}
