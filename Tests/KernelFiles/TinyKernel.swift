// SPDX-License-Identifier: Apache-2.0

/// Kernels of a few instructions in the form of a bzImage, for tests of everything around a guest.
package struct TinyKernel {
  /// The file.
  package var bytes: [UInt8]

  private static let loadAddress: UInt64 = 0x100_0000
  private static let setupSectors = 1

  /// - Parameter code: 64-bit code, started by Linux's boot protocol.
  package init(_ code: [UInt8]) {
    var file = [UInt8](repeating: 0, count: (Self.setupSectors + 1) * 512)
    file[0x1F1] = UInt8(Self.setupSectors)
    let paragraphs = (0x200 + code.count + 15) / 16
    Self.store(UInt64(paragraphs), 4, at: 0x1F4, &file)
    Self.store(0xAA55, 2, at: 0x1FE, &file)
    (file[0x200], file[0x201]) = (0xEB, 0x66)
    Self.store(0x5372_6448, 4, at: 0x202, &file)
    Self.store(0x020F, 2, at: 0x206, &file)
    file[0x211] = 1  // loaded high
    Self.store(0x7FFF_FFFF, 4, at: 0x22C, &file)
    Self.store(0x20_0000, 4, at: 0x230, &file)
    file[0x234] = 1  // relocatable
    Self.store(1, 2, at: 0x236, &file)  // 64-bit entry
    Self.store(255, 4, at: 0x238, &file)
    Self.store(Self.loadAddress, 8, at: 0x258, &file)
    Self.store(0x1_0000, 4, at: 0x260, &file)
    file += [UInt8](repeating: 0xCC, count: 0x200) + code
    file += [UInt8](repeating: 0, count: paragraphs * 16 - 0x200 - code.count)
    bytes = file
  }

  private static func store(_ value: UInt64, _ size: Int, at offset: Int, _ file: inout [UInt8]) {
    for index in 0..<size { file[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index)) }
  }

  /// mov dx, port; mov al, value; out dx, al
  private static func output(_ value: UInt8, to port: UInt16) -> [UInt8] {
    [0x66, 0xBA, UInt8(port & 0xFF), UInt8(port >> 8), 0xB0, value, 0xEE]
  }
  private static let halt: [UInt8] = [0xFA, 0xF4, 0xEB, 0xFD]  // cli; hlt; jmp hlt

  private static func text(_ text: String) -> [UInt8] {
    text.utf8.flatMap { output($0, to: 0x3F8) }
  }

  /// Prints text and powers off by ACPI.
  package static func printing(_ message: String) -> TinyKernel {
    // mov dx, 0x604; mov ax, 0x3400; out dx, ax
    TinyKernel(text(message) + [0x66, 0xBA, 0x04, 0x06, 0x66, 0xB8, 0x00, 0x34, 0x66, 0xEF] + halt)
  }

  /// Sends what it receives back until it gets a line feed, then powers off.
  package static let echoing = TinyKernel(
    [
      0x66, 0xBA, 0xFD, 0x03,  // 0:  mov dx, 0x3FD
      0xEC,  // 4:  in al, dx
      0xA8, 0x01,  // 5:  test al, 1
      0x74, 0xF7,  // 7:  jz 0
      0x66, 0xBA, 0xF8, 0x03,  // 9:  mov dx, 0x3F8
      0xEC,  // 13: in al, dx
      0xEE,  // 14: out dx, al
      0x3C, 0x0A,  // 15: cmp al, 10
      0x75, 0xED,  // 17: jnz 0
      0x66, 0xBA, 0x04, 0x06, 0x66, 0xB8, 0x00, 0x34, 0x66, 0xEF,
    ] + halt)

  /// Reads memory at 8 MiB for ever, and prints a character now and then.
  package static let reading = TinyKernel(
    [
      0xBB, 0x00, 0x00, 0x80, 0x00,  // 0:  mov ebx, 0x800000
      0x48, 0x8B, 0x03,  // 5:  mov rax, [rbx]
      0x48, 0xFF, 0xC1,  // 8:  inc rcx
      0xF7, 0xC1, 0xFF, 0x0F, 0x00, 0x00,  // 11: test ecx, 0xFFF
      0x75, 0xF2,  // 17: jnz 5
      0x66, 0xBA, 0xF8, 0x03,  // 19: mov dx, 0x3F8
      0xB0, 0x2E, 0xEE,  // 23: mov al, '.'; out dx, al
      0xEB, 0xE9,  // 26: jmp 5
    ])

  /// Ends with a status through the debug-exit port.
  package static func exiting(_ value: UInt8) -> TinyKernel {
    TinyKernel(output(value, to: 0xF4) + halt)
  }

  /// Resets through the keyboard controller.
  package static let resetting = TinyKernel(output(0xFE, to: 0x64) + halt)

  /// Prints "r", and resets through the reset register until it was started so many times, which it
  /// counts in the clock's memory; then ends with status 33. Each start is to find a byte of memory
  /// 0, and the counter of a start that does not is too high at the end: status 1.
  package static func restarting(_ count: UInt8) -> TinyKernel {
    TinyKernel(
      text("r") + output(0x50, to: 0x70) + [
        0x66, 0xBA, 0x71, 0x00, 0xEC,  // mov dx, 0x71; in al, dx
        0x02, 0x04, 0x25, 0x00, 0x00, 0x80, 0x00,  // add al, [0x800000]
        0xC6, 0x04, 0x25, 0x00, 0x00, 0x80, 0x00, 0xC8,  // mov byte [0x800000], 200
        0xFE, 0xC0, 0xEE,  // inc al; out dx, al
        0x3C, count,  // cmp al, count
        0x77, 0x0D,  // ja +13
        0x74, 0x12,  // je +18
      ] + output(0x06, to: 0xCF9) + halt
        + output(0, to: 0xF4) + output(16, to: 0xF4) + halt)
  }

  /// Asks to be told of the power button and prints "b"; powers off when it is pressed, or with
  /// `ignores` never.
  package static func waitingForButton(ignores: Bool = false) -> TinyKernel {
    TinyKernel(
      [
        0x66, 0xBA, 0x02, 0x06, 0x66, 0xB8, 0x00, 0x01, 0x66, 0xEF,  // PM1 enable: bit 8
      ] + text("b") + [
        0x66, 0xBA, 0x00, 0x06,  // 0:  mov dx, 0x600
        0x66, 0xED,  // 4:  in ax, dx
        0xF6, 0xC4, ignores ? 0 : 1,  // 6:  test ah, 1
        0x74, 0xF5,  // 9:  jz 0
        0x66, 0xBA, 0x04, 0x06, 0x66, 0xB8, 0x00, 0x34, 0x66, 0xEF,
      ] + halt)
  }

  /// Takes an exception without an interrupt table.
  package static let crashing = TinyKernel(text("x") + [0x0F, 0x0B])
  /// Halts with interrupts off.
  package static let halting = TinyKernel(text("h") + halt)
  /// Runs for ever.
  package static let spinning = TinyKernel(text("s") + [0xEB, 0xFE])
}
