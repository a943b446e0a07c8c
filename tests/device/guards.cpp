// Guards and hooks that do nothing, so that PyTorch's C++ (autograd, autocast, dispatch) accepts tensors that claim to be
// on a CUDA or MPS device in a build without one. One device, one stream, no memory: `pretended.py` has the rest.
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/MPSHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

static c10::DeviceType present = c10::DeviceType::CPU;

// Which device this machine has from now on: 0 none, 1 CUDA, 2 MPS.
extern "C" void pretend(int kind) {
  present = kind == 1 ? c10::DeviceType::CUDA : kind == 2 ? c10::DeviceType::MPS : c10::DeviceType::CPU;
}

namespace c10::impl {

template <DeviceType type_>
struct PretendedGuard final : public DeviceGuardImplInterface {
  static Device only() { return Device(type_, 0); }
  static Stream stream() { return Stream(Stream::DEFAULT, only()); }

  DeviceType type() const override { return type_; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  Device getDevice() const override { return only(); }
  Device exchangeDevice(Device) const override { return only(); }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}

  Stream getStream(Device) const override { return stream(); }
  Stream getDefaultStream(Device) const override { return stream(); }
  Stream exchangeStream(Stream) const override { return stream(); }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}

  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
};

C10_REGISTER_GUARD_IMPL(CUDA, PretendedGuard<DeviceType::CUDA>);
C10_REGISTER_GUARD_IMPL(MPS, PretendedGuard<DeviceType::MPS>);

} // namespace c10::impl

namespace at {

struct CUDAHooks : public CUDAHooksInterface {
  CUDAHooks(CUDAHooksArgs) {}
  static bool here() { return present == DeviceType::CUDA; }
  void init() const override {}
  bool hasCUDA() const override { return here(); }
  bool isBuilt() const override { return here(); }
  bool isAvailable() const override { return here(); }
  bool hasPrimaryContext(DeviceIndex) const override { return here(); }
  DeviceIndex deviceCount() const override { return here(); }
  int getNumGPUs() const override { return here(); }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void deviceSynchronize(DeviceIndex) const override {}
};

struct MPSHooks : public MPSHooksInterface {
  MPSHooks() {}
  MPSHooks(MPSHooksArgs) {} // which of the two the registry calls depends on the version of torch
  static bool here() { return present == DeviceType::MPS; }
  void init() const override {}
  bool hasMPS() const override { return here(); }
  bool isBuilt() const override { return here(); }
  bool isAvailable() const override { return here(); }
  bool isOnMacOSorNewer(unsigned, unsigned) const override { return here(); }
  bool hasPrimaryContext(DeviceIndex) const override { return here(); }
  DeviceIndex deviceCount() const override { return here(); }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void deviceSynchronize() const override {}
};

REGISTER_CUDA_HOOKS(CUDAHooks);
REGISTER_MPS_HOOKS(MPSHooks);

} // namespace at
