// SPDX-License-Identifier: Apache-2.0
//
// The interface to the owner of the memory that code is decoded from, if others may write to it
// without notice: what the processors ask, and what the owner reports.
//
//     PhysicalCPU.watchCode(CodeWatch(protect: ..., open: ..., needsComparison: ...))
//     PhysicalCPU.othersWrite(page)               // before a write to a protected page
//     PhysicalCPU.contentsMayHaveChanged()        // pages with copies are compared

import Synchronization
import X86

/// `protect` and `open` are called under a page's lock. They must not wait or allocate: a thread
/// that waits for the lock may hold the allocator's.
package struct CodeWatch: Sendable {
  /// A page gets code: others' writes to it must wait from now on, until it is opened.
  let protect: @Sendable (_ page: UInt64) -> Void
  /// A page has no code any more: writes may continue. `always`: a writer may be waiting, whatever
  /// the page's known state.
  let open: @Sendable (_ page: UInt64, _ always: Bool) -> Void
  /// Whether a protected page can be written without a protection fault.
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
  /// Watches pages with code from now on, for all CPUs of this process. Call it before there is a
  /// guest.
  package static func watchCode(_ watch: CodeWatch) { CodePages.shared.install(watch) }

  /// Another thread is about to write to a page that may have code: drops the code on all CPUs and
  /// opens the page. Allocates nothing.
  package static func othersWrite(_ page: UInt64) {
    _ = CodePages.shared.unmark(page & Page.mask, except: nil, opensAlways: true)
  }

  /// Memory may have been written that is not protected against the writer: compares code before it
  /// is executed again. From any thread.
  package static func contentsMayHaveChanged() {
    if codeCopies == 0 { return }
    CPURegistry.shared.post(.compare, except: nil)
  }

  /// The number of code page copies of all CPUs.
  package static var codeCopies: Int { CodePages.shared.copies.load(ordering: .relaxed) }

  /// In a child of fork, before it creates CPUs: forgets the parent's code, CPUs and watch.
  package static func forgetParent() {
    CPURegistry.shared.forget()
    CodePages.shared.forget()
  }
}
