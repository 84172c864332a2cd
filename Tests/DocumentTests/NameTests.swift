// SPDX-License-Identifier: Apache-2.0
//
// Every file, type, function, option and make target that comments and documents name is there.

import HostTestSupport
import Testing

@Suite struct NameTests {
  private func expectNone(_ missing: [String], _ what: Comment) {
    #expect(missing.isEmpty, "\(what):\n\(missing.joined(separator: "\n"))")
  }

  @Test func theRepositoryIsFound() {
    #expect(Repository.files.count > 400 && Repository.prose.count > 5000)
    #expect(Repository.names.contains("PhysicalCPU"))
  }

  // MARK: Files

  private static let extensions: Set<String> = [
    "swift", "md", "sh", "txt", "awk", "h", "c", "S", "gdb", "py",
  ]
  private static let folders: Set<Substring> = [
    "Sources", "Tests", "Scripts", "Benchmarks", "Guests", "docs",
  ]
  /// Made by builds, runs and the fetching of guests.
  private static let made = [".build", ".guest", "martlet-crash-"]

  private func isPathCharacter(_ character: Character) -> Bool {
    Repository.isIdentifier(character) || "./+-".contains(character)
  }

  /// The paths of this repository that a line names.
  private func paths(_ line: Substring) -> [Substring] {
    let words = line.split { !isPathCharacter($0) }
    let plain = words.map(trimmed).filter {
      Self.extensions.contains(Repository.pathExtension($0))
        || $0.contains("/") && Self.folders.contains($0.prefix { $0 != "/" })
    }
    // "Type+Aspect" is a file, too.
    let aspects = words.map(trimmed).filter { word in
      let parts = word.split(separator: "+", omittingEmptySubsequences: false)
      return parts.count == 2
        && parts.allSatisfy {
          $0.first?.isUppercase == true && $0.allSatisfy(Repository.isIdentifier)
        }
    }.map { $0 + ".swift" }
    let inTicks = quoted(line).filter { $0.contains("/") && $0.allSatisfy(isPathCharacter) }
    return (plain + aspects + inTicks.map(trimmed)).filter { path in
      !path.hasPrefix("/") && !path.hasPrefix("..") && !path.isEmpty
        && !Self.made.contains { path.hasPrefix($0) }
    }
  }

  private func trimmed(_ word: Substring) -> Substring {
    var word = word
    while let last = word.last, ".-+/".contains(last) { word = word.dropLast() }
    return word
  }

  @Test func pathsExist() {
    let missing = Repository.prose.flatMap { prose in
      paths(prose.text).filter {
        !Repository.tails.contains($0) && !Repository.foreign.contains($0)
      }.map { "\(prose.place): \($0)" }
    }
    expectNone(missing, "no such file or folder")
  }

  /// Links of documents: the file by its path from the document, the heading by its anchor.
  @Test func linksLead() throws {
    var missing: [String] = []
    for document in Repository.documents {
      for (index, line) in try Repository.lines(document).enumerated() {
        for link in links(line) where !link.hasPrefix("http") {
          let parts = link.split(separator: "#", maxSplits: 1, omittingEmptySubsequences: false)
          let target = parts[0].isEmpty ? document : resolved(parts[0], from: document)
          let known = Repository.tails.contains(target[...])
          let anchored = try parts.count < 2 || !known || anchors(target).contains(String(parts[1]))
          if !known || !anchored { missing.append("\(document):\(index + 1): \(link)") }
        }
      }
    }
    expectNone(missing, "links that lead nowhere")
  }

  private func links(_ line: Substring) -> [Substring] {
    var rest = line
    var links: [Substring] = []
    while let start = rest.firstRange(of: "](") {
      rest = rest[start.upperBound...]
      links.append(rest.prefix { $0 != ")" })
    }
    return links
  }

  private func resolved(_ link: Substring, from document: String) -> String {
    var parts = document.split(separator: "/").dropLast()
    for part in link.split(separator: "/") {
      if part == ".." { _ = parts.popLast() } else if part != "." { parts.append(part) }
    }
    return parts.joined(separator: "/")
  }

  /// Headings as GitHub makes anchors of them.
  private func anchors(_ path: String) throws -> [String] {
    try Repository.lines(path).filter { $0.hasPrefix("#") }.map { heading in
      let text = heading.drop { $0 == "#" }.dropFirst().lowercased()
      return String(text.filter { $0.isLetter || $0.isNumber || " -_".contains($0) })
        .replacing(" ", with: "-")
    }
  }

  // MARK: Types, functions, options

  /// "Type", "Type.member", "function(label:)" between backticks.
  private func names(_ text: Substring) -> [Substring] {
    let name = text.prefix { $0 != "(" }
    guard let first = name.first, first.isLetter || first == "_",
      name.allSatisfy({ Repository.isIdentifier($0) || $0 == "." }),
      name.endIndex == text.endIndex || text.hasSuffix(")")
    else { return [] }
    return name.split(separator: ".")
  }

  /// Types are found outside of backticks, too, by their capitals.
  private func camelCase(_ line: Substring) -> [Substring] {
    line.split { !Repository.isIdentifier($0) && !"/.+-".contains($0) }.map(trimmed).filter {
      word in
      word.first?.isUppercase == true && word.allSatisfy(Repository.isIdentifier)
        && zip(word, word.dropFirst()).contains { $0.isLowercase && $1.isUppercase }
    }
  }

  /// A name in the code, or, as in "KVM_EXIT_", the beginning of some.
  private func isName(_ word: Substring) -> Bool {
    Repository.names.contains(word)
      || word.hasSuffix("_") && Repository.names.contains { $0.hasPrefix(word) }
  }

  @Test func namesExist() {
    let missing = Repository.prose.flatMap { prose in
      let words = quoted(prose.text).filter { !Repository.foreign.contains($0) }
        .flatMap(names)
      let unknown = (words + camelCase(prose.text)).filter {
        !isName($0) && !Repository.foreign.contains($0)
          && !Repository.tails.contains($0)
          && !Repository.tails.contains($0 + ".swift")
      }
      return unknown.map { "\(prose.place): \($0)" }
    }
    expectNone(missing, "no such name in the code")
  }

  @Test func optionsExist() throws {
    var known = ""
    for command in [["--help"], ["run", "--help"], ["kvm", "--help"]] {
      known += try Command.run(command).output
    }
    let places = ["Scripts/", "Tests/", "Benchmarks/", "Makefile"]
    for file in Repository.files
    where places.contains(where: file.hasPrefix) && Repository.pathExtension(file) != "md" {
      known += (try? Repository.text(file)) ?? ""
    }
    let options = Set(known.split { !isOptionCharacter($0) }.filter { $0.hasPrefix("--") })
    let missing = Repository.prose.flatMap { prose in
      prose.text.split { !isOptionCharacter($0) }.filter { word in
        word.hasPrefix("--") && word.dropFirst(2).first?.isLetter == true
          && !options.contains(word) && !Repository.foreign.contains(word)
      }.map { "\(prose.place): \($0)" }
    }
    expectNone(missing, "no such option")
  }

  private func isOptionCharacter(_ character: Character) -> Bool {
    Repository.isIdentifier(character) || character == "-"
  }

  @Test func makeTargetsExist() throws {
    let targets = Set(
      try Repository.lines("Makefile").compactMap { line in
        line.firstIndex(of: ":").map { line[..<$0] }
      })
    let missing = Repository.prose.flatMap { prose in
      let isCommand = prose.text.hasPrefix("    make ")
      let commands = quoted(prose.text) + (isCommand ? [prose.text.drop { $0 == " " }] : [])
      return commands.filter { $0.hasPrefix("make ") }
        .map { $0.dropFirst(5).prefix { $0 != " " } }
        .filter { $0.first?.isLetter == true && !targets.contains($0) }
        .map { "\(prose.place): make \($0)" }
    }
    expectNone(missing, "no such target in the Makefile")
  }
}
