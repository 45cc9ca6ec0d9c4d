# shellcheck shell=bash disable=SC2016 # the dollars are apt's
# Debian's kernels, from the mirror that the machine's apt uses. To be sourced after lib.sh; it only defines.

# The build for virtual machines: the same source and network as the general one, with a third of its drivers.
KERNEL_PACKAGE=linux-image-cloud-amd64
# What pods, their capture and its tests take; the kernel loads it when it is asked for.
KERNEL_MODULES=(net fs/overlayfs drivers/net lib crypto arch/x86/crypto)
# Where releases go that the mirrors no longer carry.
ARCHIVE=http://archive.debian.org/debian

# suite_of VERSION: the release whose kernel that is.
suite_of() {
  case $1 in
    5.10) echo bullseye ;;
    6.1) echo bookworm ;;
    6.12) echo trixie ;;
    *) die "--kernel takes 5.10, 6.1 or 6.12, not '$1'" ;;
  esac
}

# get_kernel VERSION FOLDER: leaves FOLDER/vmlinuz and FOLDER/modules.cpio, unless they are there.
get_kernel() {
  local folder=$2 suite modules
  [ ! -e "$folder/modules.cpio" ] || return 0
  suite=$(suite_of "$1")
  step "Getting Debian's kernel $1 ($suite)"
  rm -rf "$folder"
  mkdir -p "$folder/apt" "$folder/unpacked"
  download_kernel "$suite" "$folder/apt" || die "apt-get could not get the kernel of $suite; its message is above"
  dpkg-deb -x "$folder"/apt/linux-image-*.deb "$folder/unpacked"
  mv "$folder"/unpacked/boot/vmlinuz-* "$folder/vmlinuz"
  modules=$(find "$folder/unpacked" -path '*/lib/modules/*' -prune)
  pack_modules "$modules" "$folder/packed" >"$folder/modules.part"
  rm -rf "$folder"/{apt,unpacked,packed}
  mv "$folder/modules.part" "$folder/modules.cpio"
}

# download_kernel SUITE FOLDER
download_kernel() {
  local mirror package APART
  apart "$2"
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' | grep -m 1 -E '/debian/?$' || true)
  for mirror in "${mirror:-http://deb.debian.org/debian}" "$ARCHIVE"; do
    echo "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $1 main" >"$2/sources.list"
    apt_apart "$2" update || continue
    # The package of the release depends on that of its newest kernel.
    package=$(apt-cache "${APART[@]}" show "$KERNEL_PACKAGE" | sed -n 's/^Depends: \([^ ,]*\).*/\1/p' | head -n 1)
    if [ -n "$package" ] && (cd "$2" && apt_apart "$2" download "$package"); then return; fi
  done
  return 1
}

# pack_modules FOLDER SCRATCH: a file system with the modules of that release, uncompressed, so that any modprobe loads them.
pack_modules() {
  local release=${1##*/} to=$2/usr/lib/modules/${1##*/} part
  mkdir -p "$to"
  for part in "${KERNEL_MODULES[@]}"; do
    [ ! -e "$1/kernel/$part" ] || (cd "$1" && cp -r --parents "kernel/$part" "$to/")
  done
  cp "$1"/modules.{builtin,order}* "$to/"
  find "$to" -name '*.ko.xz' -exec xz -d {} +
  depmod -b "$2/usr" "$release"
  pack "$2"
}

# pack FOLDER: as the kernel unpacks it at boot.
pack() { (cd "$1" && find . -mindepth 1 | sort | cpio --quiet -o -H newc -R 0:0); }
