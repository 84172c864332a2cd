// SPDX-License-Identifier: Apache-2.0
//
// Options of the software engine's translator.

import Glibc

extension Configuration {
  /// Valid sizes of the code memory in bytes.
  package static let translatorCodeSizes = 64 << 10...512 << 20

  /// Enables or disables the software engine's translator.
  package mutating func setTranslator(_ text: String) throws(RunError) {
    switch text {
    case "on": translates = true
    case "off": translates = false
    default: throw RunError("--translator \(text): give on or off")
    }
  }

  /// Enables or disables the guard of translated code's accesses against speculation.
  package mutating func setSpeculationGuard(_ text: String) throws(RunError) {
    switch text {
    case "on": guardsSpeculation = true
    case "off": guardsSpeculation = false
    default: throw RunError("--speculation-guard \(text): give on or off")
    }
  }

  /// Sets the number of executions after which a block is translated.
  package mutating func setTranslatorThreshold(_ text: String) throws(RunError) {
    translatorThreshold = UInt32(try Self.count(text, "--translator-threshold"))
  }

  /// Sets the number of entries after which a translated block is translated with its successors.
  package mutating func setTranslatorHotEntries(_ text: String) throws(RunError) {
    translatorHotEntries = try Self.count(text, "--translator-hot-entries")
  }

  private static func count(_ text: String, _ option: String) throws(RunError) -> Int32 {
    guard let number = Int32(text), number >= 1 else {
      throw RunError("\(option) \(text): give a number from 1 to \(Int32.max)")
    }
    return number
  }

  /// Sets the size of the code memory from text such as "256K" or "1M"; a bare number counts bytes.
  package mutating func setTranslatorCodeSize(_ text: String) throws(RunError) {
    let units = ["K": 10, "M": 20]
    let shift = text.last.flatMap { units[$0.uppercased()] }
    let digits = shift == nil ? text[...] : text.dropLast()
    guard let number = Int(digits), (0...Self.translatorCodeSizes.upperBound).contains(number),
      Self.translatorCodeSizes.contains(number << (shift ?? 0))
    else { throw RunError("--translator-code-size \(text): give a size from 64K to 512M") }
    // Whole pages.
    translatorCodeBytes = (number << (shift ?? 0) + 4095) & ~4095
  }
}

/// A folder that keeps translations between runs.
package struct TranslationCache: Sendable, Equatable {
  package var path: String
  /// Size limit in bytes.
  package var limit: Int

  package static let defaultLimit = 256 << 20
  package static let limits = 1 << 20...16 << 30

  package init(path: String, limit: Int = defaultLimit) {
    self.path = path
    self.limit = limit
  }

  /// The path by the XDG Base Directory Specification; nil if the user has no home.
  package static var defaultPath: String? {
    func absolute(_ name: String) -> String? {
      let value = unsafe getenv(name).map { unsafe String(cString: $0) }
      return value.flatMap { $0.hasPrefix("/") ? $0 : nil }
    }
    return (absolute("XDG_CACHE_HOME") ?? absolute("HOME").map { $0 + "/.cache" })
      .map { $0 + "/martlet" }
  }
}

extension Configuration {
  /// Sets where translations are kept: "on", "off" or a folder, optionally followed by ",size=64M".
  package mutating func setTranslationCache(_ text: String) throws(RunError) {
    var limit = TranslationCache.defaultLimit
    var path = text
    if let range = text.firstRange(of: ",size=") {
      limit = try Self.cacheLimit(text[range.upperBound...], text)
      path = String(text[..<range.lowerBound])
    }
    switch path {
    case "off": translationCache = nil
    case "on": translationCache = TranslationCache.defaultPath.map { .init(path: $0, limit: limit) }
    case "":
      throw RunError("--translation-cache \(text): give on, off or a folder")
    default: translationCache = TranslationCache(path: path, limit: limit)
    }
  }

  private static func cacheLimit(
    _ size: Substring, _ text: String
  ) throws(RunError) -> Int {
    let units = ["M": 20, "G": 30]
    let shift = size.last.flatMap { units[$0.uppercased()] } ?? 0
    let digits = shift == 0 ? size : size.dropLast()
    guard let number = Int(digits), number >= 0,
      number <= TranslationCache.limits.upperBound >> shift,
      TranslationCache.limits.contains(number << shift)
    else { throw RunError("--translation-cache \(text): give a size from 1M to 16G") }
    return number << shift
  }
}
