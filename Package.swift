// swift-tools-version: 6.3
// SPDX-License-Identifier: Apache-2.0

import PackageDescription

/// Settings that every Swift target shares.
let common: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("MemberImportVisibility"),
]

/// Every use of unsafe memory is marked `unsafe`.
let strict: [SwiftSetting] = common + [.strictMemorySafety()]

/// Functions and owners of memory may return spans of it.
let lifetimes = SwiftSetting.enableExperimentalFeature("Lifetimes")

let lending: [SwiftSetting] = strict + [lifetimes]

/// The processor and the hypervisor's exit path are hot: their state is single-owner by contract (see
/// ARCHITECTURE.md, "The processor"), so the run-time exclusivity checks cost and find nothing.
let hot: [SwiftSetting] =
  common + [
    .unsafeFlags(["-enforce-exclusivity=unchecked"], .when(configuration: .release))
  ]

/// Addresses of other libraries' functions are found at the start and read-only afterwards (BIND_NOW).
let hardened = LinkerSetting.unsafeFlags([
  "-Xlinker", "-z", "-Xlinker", "now", "-Xlinker", "-z", "-Xlinker", "relro",
])

/// The release program has the standard library inside, and symbols but no debug information. The
/// two libraries are parts of FoundationEssentials, which swift-argument-parser imports: linking
/// it statically does not name them by itself.
let standalone: [LinkerSetting] = [
  hardened,
  .unsafeFlags(
    [
      "-static-stdlib", "-l_FoundationCollections", "-l_FoundationCShims", "-Xlinker",
      "--strip-debug",
    ], .when(configuration: .release)),
]

/// The library is loaded into other people's programs: it has the standard library inside, keeps it
/// to itself, and binds its own names to itself.
let preloaded: [LinkerSetting] = [
  hardened,
  .unsafeFlags(
    [
      "-static-stdlib", "-Xlinker", "--exclude-libs=ALL", "-Xlinker", "-Bsymbolic", "-Xlinker",
      "--strip-debug",
    ], .when(configuration: .release)),
]

/// A target may import only targets that stand above it in this list (ARCHITECTURE.md has the map).
let package = Package(
  name: "martlet",
  products: [
    .executable(name: "martlet", targets: ["martlet"]),
    .library(name: "martlet-kvm", type: .dynamic, targets: ["KVMPreload"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
    .package(url: "https://github.com/apple/swift-system", from: "1.8.0"),
  ],
  targets: [
    .target(name: "CHost"),
    .target(
      name: "Host",
      dependencies: ["CHost", .product(name: "SystemPackage", package: "swift-system")],
      swiftSettings: lending),
    .target(
      name: "ClientMemory",
      dependencies: ["CHost", "Host", .product(name: "SystemPackage", package: "swift-system")],
      swiftSettings: strict),
    .target(name: "X86", swiftSettings: strict),
    .target(name: "X86Decoder", dependencies: ["X86"], swiftSettings: strict),
    .target(
      name: "X86CPU", dependencies: ["X86", "X86Decoder", "Host", "CHost"], swiftSettings: hot),
    .target(
      name: "X86JIT",
      dependencies: [
        "X86", "X86Decoder", "X86CPU", "Host",
        .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: hot + [lifetimes]),
    .target(
      name: "EntryDoctor",
      dependencies: [
        "X86", "X86CPU", .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: strict),
    .target(name: "InterruptChips", dependencies: ["X86"], swiftSettings: strict),
    .target(
      name: "KVM",
      dependencies: [
        "CHost", "Host", "ClientMemory", "X86", "X86Decoder", "X86CPU", "X86JIT",
        "InterruptChips",
        .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: hot + [.strictMemorySafety()]),
    .target(
      name: "KVMClient",
      dependencies: [
        "CHost", "Host", .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: strict),
    .target(
      name: "Defence",
      dependencies: [
        "CHost", "Host", "X86", .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: strict),
    .target(
      name: "KVMLoopback",
      dependencies: [
        "CHost", "Host", "KVM", "KVMClient", "X86", "X86CPU", "X86JIT",
        .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: strict),
    .target(
      name: "KVMPreload",
      dependencies: [
        "CHost", "Host", "ClientMemory", "KVM", "X86", "X86JIT", "Defence",
        .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: strict, linkerSettings: preloaded),
    .target(
      name: "GuestMemory",
      dependencies: [
        "CHost", "Host", .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: strict),
    .target(
      name: "Devices",
      dependencies: [
        "CHost", "Host", "GuestMemory", .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: strict),
    .target(
      name: "LinuxBoot",
      dependencies: [
        "CHost", "Host", "X86", "GuestMemory",
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: lending),
    .target(
      name: "VMM",
      dependencies: [
        "CHost", "KVMClient", "GuestMemory", "Devices", "LinuxBoot", "Host", "X86",
        .product(name: "SystemPackage", package: "swift-system"),
        .product(name: "Logging", package: "swift-log"),
      ], swiftSettings: strict),
    .executableTarget(
      name: "martlet",
      dependencies: [
        "VMM", "KVMLoopback", "Host", "Defence", "CHost", "EntryDoctor", "X86CPU",
        .product(name: "SystemPackage", package: "swift-system"),
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ], swiftSettings: strict,
      linkerSettings: standalone),
    .testTarget(
      name: "X86DecoderTests", dependencies: ["X86", "X86Decoder", "TestRandom"],
      swiftSettings: common),
    // Tests of the VMM's side.
    .target(
      name: "HostTestSupport",
      dependencies: [
        "CHost", "Host", "VMM", .product(name: "SystemPackage", package: "swift-system"),
      ],
      path: "Tests/HostTestSupport", swiftSettings: common),
    .testTarget(
      name: "HostTests",
      dependencies: [
        "CHost", "Host", "HostTestSupport", "TestRandom",
        .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: common),
    .testTarget(
      name: "KVMClientTests",
      dependencies: [
        "KVMClient", "Host", "CHost", "HostTestSupport",
        .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: common),
    .target(name: "KernelFiles", path: "Tests/KernelFiles", swiftSettings: common),
    .target(name: "TestRandom", path: "Tests/TestRandom", swiftSettings: common),
    .target(
      name: "Support", dependencies: ["X86", "X86Decoder", "X86CPU", "X86JIT", "TestRandom"],
      path: "Tests/Support", swiftSettings: common),
    .testTarget(
      name: "X86CPUTests",
      dependencies: [
        "X86", "X86Decoder", "X86CPU", "EntryDoctor", "Host", "HostTestSupport", "Support",
        "TestRandom",
      ],
      swiftSettings: common),
    .target(
      name: "Oracle",
      dependencies: [
        "X86", "X86Decoder", "X86CPU", "X86JIT", "Host", "CHost", "Support",
        .product(name: "SystemPackage", package: "swift-system"),
      ], path: "Tests/Oracle", swiftSettings: common),
    .executableTarget(
      name: "martlet-oracle", dependencies: ["Oracle"],
      path: "Tests/OracleRun", swiftSettings: common),
    .testTarget(
      name: "OracleTests", dependencies: ["HostTestSupport"],
      swiftSettings: common),
    // Guests made to break the monitor.
    .executableTarget(
      name: "martlet-survive",
      dependencies: [
        "CHost", "Host", "X86", "X86Decoder", "X86CPU", "KVM", "KVMClient", "KVMLoopback",
        "Devices", "LinuxBoot", "Support", "TestRandom",
        .product(name: "SystemPackage", package: "swift-system"),
      ], path: "Tests/Survival", swiftSettings: common),
    .testTarget(
      name: "SurvivalTests", dependencies: ["HostTestSupport"], swiftSettings: common),
    .testTarget(
      name: "X86JITTests",
      dependencies: ["Host", "X86", "X86Decoder", "X86CPU", "X86JIT", "Support", "TestRandom"],
      exclude: ["Golden"], swiftSettings: common),
    .testTarget(
      name: "InterruptChipsTests", dependencies: ["InterruptChips", "X86", "TestRandom"],
      swiftSettings: common),
    .executableTarget(
      name: "martlet-bench",
      dependencies: [
        "X86", "X86CPU", "Support", "Host", "CHost", "KVMClient", "KVMLoopback",
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      path: "Benchmarks/MartletBench", swiftSettings: common),
    .testTarget(
      name: "DevicesTests",
      dependencies: [
        "Devices", "GuestMemory", "Host", "HostTestSupport", "TestRandom",
        .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: common),
    // Is killed while it writes to a disk image.
    .executableTarget(
      name: "martlet-image-writer",
      dependencies: [
        "Devices", "GuestMemory", "Host", "TestRandom",
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      path: "Tests/ImageWriter", swiftSettings: common),
    .testTarget(
      name: "LinuxBootTests",
      dependencies: [
        "LinuxBoot", "GuestMemory", "CHost", "Host", "HostTestSupport", "KernelFiles",
      ],
      swiftSettings: common),
    .testTarget(
      name: "VMMTests",
      dependencies: [
        "VMM", "Devices", "KVMClient", .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: common),
    .executableTarget(
      name: "martlet-kvm-client", dependencies: ["CHost"], path: "Tests/KVMClientProgram",
      swiftSettings: common),
    .executableTarget(
      name: "martlet-kvm-fuzz", dependencies: ["CHost", "TestRandom"],
      path: "Tests/KVMFuzzProgram", swiftSettings: common),
    .testTarget(
      name: "MartletTests",
      dependencies: [
        "Defence", "CHost", "Host", "HostTestSupport", "KernelFiles",
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: common),
    // What documents and comments say of the code, the options and the modules.
    .testTarget(
      name: "DocumentTests", dependencies: ["HostTestSupport"],
      exclude: ["foreign-names.txt"], swiftSettings: common),
    .testTarget(
      name: "KVMTests",
      dependencies: [
        "KVM", "KVMClient", "KVMLoopback", "Host", "ClientMemory", "CHost", "X86", "X86CPU",
        "HostTestSupport",
        .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: common),
  ]
)

// Inputs that libFuzzer makes, for what reads bytes of guests and files: only there where the fuzzer is
// asked for (make fuzz-inputs), as the program has its main function from it. The linker must keep the
// fuzzer's tables, which nothing names.
if Context.environment["MARTLET_FUZZ"] != nil {
  package.targets.append(
    .executableTarget(
      name: "martlet-fuzz",
      dependencies: [
        "CHost", "X86", "X86Decoder", "GuestMemory", "Devices", "InterruptChips", "LinuxBoot",
        "Host",
        "KernelFiles", .product(name: "SystemPackage", package: "swift-system"),
      ], path: "Tests/Fuzz",
      swiftSettings: common,
      linkerSettings: [
        .unsafeFlags(["-use-ld=lld", "-Xlinker", "-z", "-Xlinker", "nostart-stop-gc"])
      ]))
}

// A lock that ThreadSanitizer understands, in the test program of make sanitize-threads.
if Context.environment["MARTLET_TSAN"] != nil {
  package.targets.append(
    .target(
      name: "SanitizedMutex", path: "Tests/ThreadSanitizer", exclude: ["suppressions.txt"],
      swiftSettings: common))
  for target in package.targets where target.name == "HostTests" {
    target.dependencies.append("SanitizedMutex")
  }
}
