// SPDX-License-Identifier: Apache-2.0
//
// The repository's files as the document tests read them: paths from its root, prose by line, and
// the names that its code has.

import Foundation
import HostTestSupport

enum Repository {
  private static let folders = [
    "Sources", "Tests", "Benchmarks", "Guests", "Scripts", "docs", ".ci",
  ]

  /// All files, by path from the root. What builds and guests leave behind is not among them.
  static let files: [String] = {
    let manager = FileManager.default
    var found: [String] = []
    for folder in folders {
      for case let path as String in manager.enumerator(atPath: root + folder) ?? .init() {
        var isFolder: ObjCBool = false
        let name = folder + "/" + path
        _ = manager.fileExists(atPath: root + name, isDirectory: &isFolder)
        if !isFolder.boolValue { found.append(name) }
      }
    }
    let top = (try? manager.contentsOfDirectory(atPath: root)) ?? []
    return (found + top.filter { $0.contains(".") || $0 == "Makefile" || $0 == "LICENSE" }).sorted()
  }()

  /// Every path by which prose may name a file or a folder: from the root, or any tail of that.
  static let tails: Set<Substring> = {
    var tails: Set<Substring> = []
    for file in files {
      var folder = file[...]
      while true {
        var tail = folder
        while true {
          tails.insert(tail)
          guard let slash = tail.firstIndex(of: "/") else { break }
          tail = tail[tail.index(after: slash)...]
        }
        guard let slash = folder.lastIndex(of: "/") else { break }
        folder = folder[..<slash]
      }
    }
    return tails
  }()

  static var root: String { Command.package + "/" }

  static func text(_ path: String) throws -> String {
    try String(contentsOfFile: root + path, encoding: .utf8)
  }

  static func lines(_ path: String) throws -> [Substring] {
    try text(path).split(separator: "\n", omittingEmptySubsequences: false)
  }

  /// Every identifier in code: Swift, C, assembly and scripts, without their comments.
  static let names: Set<Substring> = {
    var names: Set<Substring> = []
    for file in files where ["swift", "h", "c", "S", "sh", "awk"].contains(pathExtension(file)) {
      let isScript = ["sh", "awk"].contains(pathExtension(file))
      for line in (try? lines(file)) ?? [] {
        let code = isScript ? line : line.prefix(upTo: commentStart(line))
        names.formUnion(code.split { !isIdentifier($0) })
      }
    }
    return names
  }()

  /// A line of prose and where it stands.
  struct Prose {
    let file: String
    let line: Int
    let text: Substring
    var place: String { "\(file):\(line)" }
  }

  /// The documents, without the log of changes, which names what is gone.
  static let documents: [String] = files.filter {
    pathExtension($0) == "md" && $0 != "CHANGELOG.md"
  }

  /// The documents' lines, and the comments of the program's sources.
  static let prose: [Prose] = {
    var prose: [Prose] = []
    let sources = files.filter {
      $0.hasPrefix("Sources/") && ["swift", "h"].contains(pathExtension($0))
    }
    for file in documents + sources {
      let isDocument = pathExtension(file) == "md"
      for (index, line) in ((try? lines(file)) ?? []).enumerated() {
        let text = isDocument ? line : line.suffix(from: commentStart(line))
        if !text.isEmpty { prose.append(Prose(file: file, line: index + 1, text: text)) }
      }
    }
    return prose
  }()

  /// Names, paths and options of others: the kernel's, QEMU's, a tool's. One in a line, the reason
  /// behind it.
  static let foreign: Set<Substring> = {
    let list = (try? lines("Tests/DocumentTests/foreign-names.txt")) ?? []
    return Set(list.filter { !$0.hasPrefix("#") }.compactMap { $0.split(separator: " ").first })
  }()

  static func pathExtension(_ path: some StringProtocol) -> String {
    guard let dot = path.lastIndex(of: "."), dot != path.startIndex else { return "" }
    return String(path[path.index(after: dot)...])
  }

  static func isIdentifier(_ character: Character) -> Bool {
    character.isASCII && (character.isLetter || character.isNumber || character == "_")
  }

  /// Where "//" begins at the start of a line or behind a space; the line's end where there is
  /// none.
  static func commentStart(_ line: Substring) -> Substring.Index {
    var from = line.startIndex
    while let found = line[from...].firstRange(of: "//") {
      let before = line[..<found.lowerBound].last
      if before == nil || before == " " { return found.lowerBound }
      from = found.upperBound
    }
    return line.endIndex
  }
}

/// What stands between backticks in a line.
func quoted(_ line: Substring) -> [Substring] {
  let parts = line.split(separator: "`", omittingEmptySubsequences: false)
  return parts.indices.filter { $0 % 2 == 1 && $0 + 1 < parts.count }.map { parts[$0] }
}
