// SPDX-License-Identifier: Apache-2.0
//
// ARCHITECTURE.md says of each module what it imports; Package.swift and the sources say the same.

import Testing

@Suite struct ModuleTests {
  /// The rows of the map: module and what it imports.
  private func map() throws -> [(module: String, imports: Set<String>)] {
    try Repository.lines("ARCHITECTURE.md").drop { !$0.hasPrefix("| module |") }
      .dropFirst(2).prefix { $0.hasPrefix("|") }
      .map { line in
        let cells = line.split(separator: "|")
        return (quoted(cells[0]).map(String.init)[0], Set(quoted(cells[1]).map(String.init)))
      }
  }

  /// The modules of this package that Package.swift lets each one import: the strings in the
  /// brackets behind "dependencies:" of the first target of that name.
  private func dependencies(of module: String) throws -> Set<String> {
    let manifest = try Repository.text("Package.swift")
    let targets = manifest.suffix(from: manifest.firstRange(of: "targets: [\n")!.upperBound)
    let start = try #require(targets.firstRange(of: "name: \"\(module)\"")).upperBound
    let end = targets[start...].firstRange(of: "arget(")?.lowerBound ?? targets.endIndex
    let target = targets[start..<end]
    guard let list = target.firstRange(of: "dependencies: [") else { return [] }
    let names = target[list.upperBound...].prefix { $0 != "]" }
      .split(separator: ".product(name:").joined(separator: " ")
      .split(separator: "\"", omittingEmptySubsequences: false)
    return Set(names.indices.filter { $0 % 2 == 1 }.map { String(names[$0]) })
  }

  private func imports(of module: String) throws -> Set<String> {
    var found: Set<String> = []
    for file in Repository.files where file.hasPrefix("Sources/\(module)/") {
      for line in try Repository.lines(file) {
        let words = line.split(separator: " ")
        guard let at = words.firstIndex(of: "import"), words.count > at + 1,
          words[..<at].allSatisfy({
            ["package", "public", "internal", "private", "@preconcurrency"].contains($0)
          })
        else { continue }
        found.insert(String(words[at + 1]))
      }
    }
    return found
  }

  @Test func theMapHasAllModules() throws {
    let folders = Set(
      Repository.files.filter { $0.hasPrefix("Sources/") }.map { $0.split(separator: "/")[1] })
    #expect(Set(try map().map { $0.module[...] }) == folders)
  }

  /// The map and Package.swift agree, the sources import no more, and nothing from further down.
  @Test func modulesImportWhatTheMapSays() throws {
    var above: Set<String> = []
    let modules = Set(try map().map(\.module))
    for (module, imports) in try map() {
      #expect(imports.isSubset(of: above), "\(module) imports a module below it")
      let allowed = try dependencies(of: module).intersection(modules)
      #expect(imports == allowed, "\(module): the map has \(imports), Package.swift \(allowed)")
      let found = try self.imports(of: module).intersection(modules)
      let unlisted = found.subtracting(imports)
      #expect(unlisted.isEmpty, "\(module): the sources import \(unlisted), the map does not")
      above.insert(module)
    }
    #expect(above.count > 10)
  }
}
