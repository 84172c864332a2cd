// SPDX-License-Identifier: Apache-2.0
//
// `martlet cache`: shows and removes the translations that `--translation-cache` keeps.

import ArgumentParser
import Host
import KVMLoopback
import SystemPackage
import VMM

struct CacheCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "cache",
    abstract: "Shows the translated code that runs have kept (--translation-cache), or removes it.")

  @Flag(help: "Remove it. Runs that are using it go on.")
  var clear = false

  @Option(
    help: ArgumentHelp(
      "The folder. (default: $XDG_CACHE_HOME/martlet)", valueName: "folder"),
    completion: .directory)
  var folder: String?

  func run() throws {
    guard let path = folder ?? TranslationCache.defaultPath else {
      Martlet.say("cache: HOME is not set; give --folder")
      throw ExitCode(ExitStatus.badInput)
    }
    do throws(PrivateFolderError) {
      let cache = try PrivateFolder(opening: path, creates: false)
      if clear { remove(cache) } else { show(cache) }
    } catch {
      if error == .system(.noSuchFileOrDirectory) {
        print("\(path): nothing is kept")
        return
      }
      Martlet.say("cache: \(path): \(error)")
      throw ExitCode(ExitStatus.badInput)
    }
  }

  private func files(_ cache: borrowing PrivateFolder) -> [PrivateFolder.Entry] {
    cache.entries().filter { entry in
      LoopbackTransport.storeSuffixes.contains { entry.name.hasSuffix($0) }
    }
  }

  private func show(_ cache: borrowing PrivateFolder) {
    let files = files(cache)
    print("\(cache.path): \(Self.size(files.reduce(0) { $0 &+ $1.size }))")
    for file in files { print("  \(file.name) \(Self.size(file.size))") }
  }

  private func remove(_ cache: borrowing PrivateFolder) {
    var size = 0
    for file in files(cache) where cache.remove(file.name) { size &+= file.size }
    print("\(cache.path): removed \(Self.size(size))")
  }

  private static func size(_ bytes: Int) -> String {
    let tenths = bytes / ((1 << 20) / 10)
    return "\(tenths / 10).\(tenths % 10) MiB"
  }
}
