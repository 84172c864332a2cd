// SPDX-License-Identifier: Apache-2.0
//
// What the processors ask of whoever knows the memory that code is decoded from, where others may
// write to it without telling them; and what he tells the processors.
//
//     PhysicalCPU.watchCode(CodeWatch(protect: ..., open: ..., needsComparison: ...))
//     PhysicalCPU.othersWrite(page)               // before a write to a protected page
//     PhysicalCPU.contentsMayHaveChanged()        // pages with copies are compared

import Synchronization
import X86

/// `protect` and `open` are called under a page's lock: they wait for nobody and take no memory
/// from the allocator, as a thread that waits for the lock may hold the allocator's.
package struct CodeWatch: Sendable {
  /// A page is about to have code: others' writes to it wait from now on, until it is opened.
  let protect: @Sendable (_ page: UInt64) -> Void
  /// A page has no code any more: writes go on. `always`: somebody may wait, whatever is known of
  /// the page.
  let open: @Sendable (_ page: UInt64, _ always: Bool) -> Void
  /// Whether somebody may write to a page, which is protected, without its protection telling.
  let needsComparison: @Sendable (_ page: UInt64) -> Bool

  package init(
    protect: @escaping @Sendable (_ page: UInt64) -> Void,
    open: @escaping @Sendable (_ page: UInt64, _ always: Bool) -> Void,
    needsComparison: @escaping @Sendable (_ page: UInt64) -> Bool
  ) {
    self.protect = protect
    self.open = open
    self.needsComparison = needsComparison
  }
}

extension PhysicalCPU {
  /// From now on pages with code are watched, for all CPUs of this process. Before there is a
  /// guest.
  package static func watchCode(_ watch: CodeWatch) { CodePages.shared.install(watch) }

  /// Somebody is about to write to a page that may have code: all CPUs drop it, and the page is
  /// opened. Allocates nothing.
  package static func othersWrite(_ page: UInt64) {
    _ = CodePages.shared.unmark(page & Page.mask, except: nil, opensAlways: true)
  }

  /// Somebody may have written to memory that is not protected against him: code is compared before
  /// it is executed again. From any thread.
  package static func contentsMayHaveChanged() {
    if codeCopies == 0 { return }
    CPURegistry.shared.post(.compare, except: nil)
  }

  /// Copies of pages with code that all CPUs have.
  package static var codeCopies: Int { CodePages.shared.copies.load(ordering: .relaxed) }

  /// In a child of fork, before it makes CPUs: the parent's code, CPUs and watch are not the
  /// child's.
  package static func forgetParent() {
    CPURegistry.shared.forget()
    CodePages.shared.forget()
  }
}
