// SPDX-License-Identifier: Apache-2.0
//
// Every instruction that the assembler emits, with every register and kind of address: the text
// that is meant, written here from the operands alone, against a disassembler of the toolchain
// (objdump) and against the project's own.

import Foundation
import Testing
import X86Decoder
import X86JIT

/// Instructions one after the other, with the text that each is to have.
private struct Forms {
  var a = Assembler(origin: 0)
  var expected: [(offset: Int, text: String)] = []

  /// One instruction.
  mutating func add(_ text: String, _ emit: (inout Assembler) -> Void) {
    expected.append((a.position, text))
    emit(&a)
  }

  /// Several, as one function of the assembler emits them.
  mutating func add(_ texts: [String], _ emit: (inout Assembler) -> Void) {
    let first = expected.count
    var offset = a.position
    emit(&a)
    for text in texts {
      expected.append((offset, text))
      let rest = a.bytes[offset...]
      let i = rest.withUnsafeBytes { try? Decoder.decode($0, mode: .bits64) }
      offset += i.map { Int($0.length) } ?? 1
    }
    precondition(expected.count == first + texts.count)
  }

  // MARK: Texts

  static let registers = (0..<16).compactMap { HostRegister(rawValue: $0) }
  private static let legacy = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"]

  static func name(_ register: HostRegister, _ bits: Int = 64) -> String {
    let number = Int(register.rawValue)
    if number >= 8 { return "r\(number)" + (bits == 64 ? "" : bits == 32 ? "d" : "w") }
    return (bits == 64 ? "r" : bits == 32 ? "e" : "") + legacy[number]
  }

  static func hex<Value: BinaryInteger>(_ value: Value) -> String {
    value < 0 ? "-0x" + String(value.magnitude, radix: 16) : "0x" + String(value, radix: 16)
  }

  /// An immediate as an operand of so many bits.
  static func immediate(_ value: Int32, _ bits: Int) -> String {
    bits == 64
      ? hex(UInt64(bitPattern: Int64(value))) : hex(UInt32(bitPattern: value))
  }

  static func address(_ place: Place) -> String {
    guard let base = place.base else { return "" }
    var text = "[" + name(base)
    if let index = place.index { text += "+\(name(index))*\(1 << Int(place.scale))" }
    // RBP and R13 as a base have no form without a displacement.
    if place.displacement != 0 || base.rawValue & 7 == 5 {
      text += (place.displacement < 0 ? "" : "+") + hex(place.displacement)
    }
    return text + "]"
  }

  static func text(_ place: Place, _ bits: Int) -> String {
    if let register = place.register { return name(register, bits) }
    let size = [8: "BYTE", 16: "WORD", 32: "DWORD", 64: "QWORD"][bits] ?? ""
    return size + " PTR " + address(place)
  }

  /// All bases with all kinds of displacement, and indexes.
  static let memory: [Place] = {
    var places: [Place] = []
    for base in registers {
      for displacement: Int32 in [0, 0x7F, -0x80, 0x80, -0x1234, 0x1234_5678] {
        places.append(.memory(base, displacement))
      }
      for index in registers where index != .rsp {
        let scale = (base.rawValue &+ index.rawValue) & 3
        places.append(
          .memory(base, index: index, scale: scale, index.rawValue & 1 == 0 ? 0 : 0x40))
      }
    }
    return places
  }()

  /// Memory and registers.
  static let places = memory + registers.map { Place.register($0) }

  // MARK: The instructions

  mutating func moves() {
    for (n, place) in Self.memory.enumerated() {
      let r = Self.registers[n % 16]
      let (wide, narrow) = (Self.name(r), Self.name(r, 32))
      func memory(_ bits: Int) -> String { Self.text(place, bits) }
      add("mov \(wide),\(memory(64))") { $0.load(r, place) }
      add("mov \(memory(64)),\(wide)") { $0.store(place, r) }
      add("mov \(narrow),\(memory(32))") { $0.load32(r, place) }
      add("mov \(memory(32)),\(narrow)") { $0.store32(place, r) }
      add("mov \(memory(16)),\(Self.name(r, 16))") { $0.store16(place, r) }
      add("mov \(memory(8)),\(Self.hex(UInt8(n & 0xFF)))") {
        $0.store8(place, immediate: UInt8(n & 0xFF))
      }
      add("movzx \(narrow),\(memory(16))") { $0.loadWord(r, place) }
      add("lea \(wide),\(Self.address(place))") { $0.lea(r, place) }
      add("lea \(narrow),\(Self.address(place))") { $0.lea32(r, place) }
      let value = Int32(truncatingIfNeeded: n &* 0x0765_4321)
      add("mov \(memory(64)),\(Self.immediate(value, 64))") { $0.store(place, immediate: value) }
    }
    for r in Self.registers {
      for other in Self.registers {
        add("mov \(Self.name(r)),\(Self.name(other))") { $0.move(r, other) }
      }
      add("mov \(Self.name(r, 32)),0xffffffff") { $0.move(r, immediate: 0xFFFF_FFFF) }
      add("mov \(Self.name(r)),0xffffffff80000000") {
        $0.move(r, immediate: 0xFFFF_FFFF_8000_0000)
      }
      add("movabs \(Self.name(r)),0x123456789abcdef") {
        $0.move(r, immediate: 0x0123_4567_89AB_CDEF)
      }
    }
  }

  private static let kinds: [(Assembler.Arithmetic, String)] = [
    (.add, "add"), (.or, "or"), (.adc, "adc"), (.sbb, "sbb"), (.and, "and"), (.sub, "sub"),
    (.xor, "xor"), (.cmp, "cmp"),
  ]

  mutating func arithmetic() {
    for (n, place) in Self.places.enumerated() {
      let r = Self.registers[n % 16]
      let (kind, name) = Self.kinds[n / 16 % 8]
      add("\(name) \(Self.name(r)),\(Self.text(place, 64))") { $0.arithmetic(kind, r, place) }
      add("\(name) \(Self.name(r, 32)),\(Self.text(place, 32))") {
        $0.arithmetic32(kind, r, place)
      }
      for value: Int32 in [1, -128, 127, 128, -129, 0x7654_3210] {
        add("\(name) \(Self.text(place, 64)),\(Self.immediate(value, 64))") {
          $0.arithmetic(kind, place, immediate: value)
        }
        add("\(name) \(Self.text(place, 32)),\(Self.immediate(value, 32))") {
          $0.arithmetic(kind, place, immediate: value, wide: false)
        }
      }
      add("xor \(Self.text(place, 64)),\(Self.name(r))") { $0.exclusiveOr(place, r) }
      add("test \(Self.text(place, 32)),0x12345") { $0.test32(place, immediate: 0x12345) }
      if place.register == nil {
        add("test \(Self.text(place, 8)),0x81") { $0.testByte(place, 0x81) }
      }
    }
  }

  mutating func registerForms() {
    for (n, r) in Self.registers.enumerated() {
      let (wide, narrow) = (Self.name(r), Self.name(r, 32))
      add("shr \(wide),0x5") { $0.shiftRight(r, 5) }
      add("sar \(wide),0x10") { $0.shiftRightSigned(r, 16) }
      add("shl \(wide),0x3f") { $0.shiftLeft(r, 63) }
      add("shl \(narrow),0x5") { $0.shiftLeft32(r, 5) }
      add("test \(wide),\(wide)") { $0.test(r) }
      add("test \(narrow),\(narrow)") { $0.test32(r) }
      add("jmp \(wide)") { $0.jump(r) }
      add("call \(wide)") { $0.call(r) }
      add("push \(wide)") { $0.push(r) }
      add("pop \(wide)") { $0.pop(r) }
      for other in Self.registers {
        let second = Self.name(other)
        let third = Self.registers[(n &+ 5) & 15]
        add("rorx \(wide),\(second),0x7") { $0.rorx(r, other, 7) }
        add("pext \(wide),\(wide),\(second)") { $0.extractBits(r, other) }
        add("shlx \(wide),\(wide),\(second)") { $0.shiftWithoutFlags(.left, r, by: other) }
        add("shrx \(wide),\(wide),\(second)") { $0.shiftWithoutFlags(.right, r, by: other) }
        add("andn \(wide),\(second),\(Self.name(third))") { $0.andNot(r, other, third) }
      }
    }
    add("ret") { $0.ret() }
  }

  /// A guest's opcode with other operands.
  mutating func guestForms() {
    for (n, place) in Self.memory.enumerated() {
      let r = Self.registers[n % 16]
      var form = Form(0x01, wide: true)
      form.lock = true
      add("lock add \(Self.text(place, 64)),\(Self.name(r))") {
        $0.emit(form, reg: r.rawValue, rm: place)
      }
      form = Form(0xB8, map: .two)
      form.repeatPrefix = 0xF3
      add("popcnt \(Self.name(r, 32)),\(Self.text(place, 32))") {
        $0.emit(form, reg: r.rawValue, rm: place)
      }
      form = Form(0xF1, map: .three38)
      form.operandSize16 = true
      add("movbe \(Self.text(place, 16)),\(Self.name(r, 16))") {
        $0.emit(form, reg: r.rawValue, rm: place)
      }
      add("mulx \(Self.name(r)),\(Self.name(r)),\(Self.text(place, 64))") {
        $0.emitVEX(
          Form(0xF6, map: .three38, wide: true), prefix: 3, reg: r.rawValue, vvvv: r.rawValue,
          rm: place)
      }
    }
    var form = Form(0x88)
    form.forceREX = true
    add("mov sil,dil") { $0.emit(form, reg: 7, rm: .register(.rsi)) }
    form.forceREX = false
    add("mov dh,bh") { $0.emit(form, reg: 7, rm: .register(.rsi)) }
  }

  private static let conditions = [
    "jo", "jno", "jb", "jae", "je", "jne", "jbe", "ja", "js", "jns", "jp", "jnp", "jl", "jge",
    "jle", "jg",
  ]

  mutating func branches() {
    let start = a.label()
    let place = a.position
    a.bind(start)
    for (n, name) in Self.conditions.enumerated() {
      add("\(name) \(Self.hex(place))") { $0.jump(if: UInt8(n), start) }
    }
    add("jmp \(Self.hex(place))") { $0.jump(start) }
    add("jmp 0x1234") { $0.jump(to: 0x1234) }
    add("call 0x123456") { $0.call(0x12_3456) }
    let end = a.label()
    expected.append((a.position, "jne \(Self.hex(a.position + 6))"))
    a.jump(if: 5, end)
    a.bind(end)
    add(["mov r14,rax", "lahf", "seto al", "mov WORD PTR [rsp+0x20],ax", "mov rax,r14"]) {
      $0.saveFlags(.state(0x80), temporary: .r14)
    }
    add([
      "mov r14,rax", "movzx eax,WORD PTR [rsp+0x20]", "add al,0x7f", "sahf", "mov rax,r14",
    ]) { $0.restoreFlags(.state(0x80), temporary: .r14) }
    a.resolve()
  }

  mutating func vectors() {
    let displacements = [0x40, 0x7F, 0x80, 0x1FC0, 0x2000, 0x1234, -0x40, -0x2040]
    for number in 0..<32 as Range<UInt8> {
      for (width, size, letter) in [
        (16, "XMMWORD", "x"), (32, "YMMWORD", "y"), (64, "ZMMWORD", "z"),
      ] {
        for displacement in displacements {
          let sign = displacement < 0 ? "" : "+"
          let memory = "\(size) PTR [rsp\(sign)\(Self.hex(displacement))]"
          add("vmovups \(letter)mm\(number),\(memory)") {
            $0.vectorMove(
              number, width: UInt8(width), .load, offset: displacement + Place.stateBias)
          }
          add("vmovups \(memory),\(letter)mm\(number)") {
            $0.vectorMove(
              number, width: UInt8(width), .store, offset: displacement + Place.stateBias)
          }
        }
      }
    }
    for number in 0..<8 as Range<UInt8> {
      for (wide, name, size) in [(true, "kmovq", "QWORD"), (false, "kmovw", "WORD")] {
        let memory = "\(size) PTR [rsp+0x1234]"
        add("\(name) k\(number),\(memory)") {
          $0.maskMove(number, wide: wide, .load, offset: 0x1234 + Place.stateBias)
        }
        add("\(name) \(memory),k\(number)") {
          $0.maskMove(number, wide: wide, .store, offset: 0x1234 + Place.stateBias)
        }
      }
    }
  }
}

@Suite struct EmitterFormsTests {
  private nonisolated(unsafe) static let all: Forms = {
    var forms = Forms()
    forms.moves()
    forms.arithmetic()
    forms.registerForms()
    forms.guestForms()
    forms.branches()
    forms.vectors()
    return forms
  }()

  /// Compares texts in order; the first ten that differ are reported.
  private func compare(_ texts: [Int: String], _ who: String) {
    var failures = 0
    for (offset, expected) in Self.all.expected where texts[offset] != expected {
      failures += 1
      if failures <= 10 {
        Issue.record("\(who) at \(offset): \(texts[offset] ?? "nothing"), meant: \(expected)")
      }
    }
    #expect(failures == 0)
    #expect(texts.count == Self.all.expected.count)
  }

  @Test func ownDisassemblerAgrees() {
    let bytes = Self.all.a.bytes
    #expect(Self.all.expected.count > 10_000)
    var texts: [Int: String] = [:]
    var offset = 0
    while offset < bytes.count {
      let rest = bytes[offset...]
      guard let i = rest.withUnsafeBytes({ try? Decoder.decode($0, mode: .bits64) }) else {
        Issue.record("not decoded at \(offset)")
        return
      }
      texts[offset] = Disassembler.text(i, at: UInt64(offset))
      offset += Int(i.length)
    }
    compare(texts, "own disassembler")
  }

  @Test func objdumpAgrees() throws {
    let file = FileManager.default.temporaryDirectory
      .appendingPathComponent("martlet-emitter-\(getpid())")
    try Data(Self.all.a.bytes).write(to: file)
    defer { try? FileManager.default.removeItem(at: file) }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = [
      "objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", "-w",
      "--insn-width=16", file.path,
    ]
    let output = Pipe()
    process.standardOutput = output
    try process.run()
    let listing = output.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    try #require(process.terminationStatus == 0, "objdump fails: apt-get install binutils")
    var texts: [Int: String] = [:]
    for line in String(decoding: listing, as: UTF8.self).split(separator: "\n") {
      let fields = line.split(separator: "\t")
      guard fields.count == 3, let colon = fields[0].firstIndex(of: ":"),
        let offset = Int(fields[0][..<colon].drop { $0 == " " }, radix: 16)
      else { continue }
      texts[offset] = Self.plain(fields[2])
    }
    compare(texts, "objdump")
  }

  /// With one space between words, and without comments and symbols.
  private static func plain(_ text: Substring) -> String {
    text.prefix { $0 != "#" && $0 != "<" }.split(separator: " ").joined(separator: " ")
  }
}
