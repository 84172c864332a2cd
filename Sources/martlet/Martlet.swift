// SPDX-License-Identifier: Apache-2.0

import ArgumentParser

@main
struct Martlet: ParsableCommand {
  static let configuration = CommandConfiguration(abstract: "A hypervisor and virtual machine monitor")
}
