"""First array: memory on the device, its types and views, and how values come back.

What you learn: where an array lives, how it is filled, sliced and converted, when work is waited for, and how to read
the device's assumed properties.

    python3 samples/python/01_first_array.py
"""
import jalapeno as jal
import numpy as np

from tutorial import check, picture


# 1. A device. Without JAL_DEVICE_URI it is an emulated chip in this process. No data sheet of the chip is public: its
#    properties are assumptions of one configuration file, and "assumed" says so. The default device is used where none
#    is named; jal.Device(uri) opens another.
device = jal.default_device()
p = device.properties
kind = "modelled, assumed chip" if p["assumed"] else "chip"
print(f"{device.uri} {kind} (configuration {p['config_name']}): {p['cores']} cores with {p['spm_bytes'] >> 20} MiB of "
      f"scratchpad each, {p['hbm_gbytes_per_second']:,.0f} GB/s of HBM")

# 2. From NumPy to the device and back. array() copies; float64 becomes float32, because kernels compute in float32.
host = np.linspace(0, 1, 12).reshape(3, 4)
x = jal.array(host)
print(f"\n{x}")
check("array() of float64 is float32", x.dtype is jal.float32)
check("the values come back with .numpy()", np.array_equal(x.numpy(), host.astype(np.float32)))

# 3. Views. A slice, a transpose and a reshape name the same memory; writing to a view writes to x.
column = x[:, 1]
column.fill(7)
check("fill() of x[:, 1] changed x", np.all(x.numpy()[:, 1] == 7))
x[0] = [10, 20, 30, 40]
check("x[0] = [...] changed one row", x[0].tolist() == [10, 20, 30, 40])
check("x.T is a view: strides exchanged", x.T.strides == x.strides[::-1] and np.array_equal(x.T.numpy(), x.numpy().T))

# 4. Arithmetic runs on the device. It is enqueued and returns at once; .numpy() waits for it.
y = (x * 2 + 1) @ x.T
check("(x * 2 + 1) @ x.T", np.allclose(y.numpy(), (x.numpy() * 2 + 1) @ x.numpy().T))

# 5. Types NumPy does not have. bfloat16 keeps 8 significant bits; .numpy() gives the values as float32.
third = jal.array([1 / 3, 1.0, 1000.5]).astype(jal.bfloat16)
print(f"\n{third}\n  1/3, 1 and 1000.5 in bfloat16: {third.tolist()}")
relative = np.abs(third.numpy() - [1 / 3, 1.0, 1000.5]) / [1 / 3, 1.0, 1000.5]
check("bfloat16 rounds by at most 1 part in 256", relative.max() <= 2**-8 + 1e-7)

# 6. Pinned memory lies on the host and the device reaches it: NumPy shares it without a copy. Work is asynchronous, so
#    wait for it before you read: nothing waits for you here.
pinned = jal.empty((2, 3), pinned=True)
shared = pinned.numpy()
pinned.copy_from(jal.array([[1, 2, 3], [4, 5, 6]], jal.float32))
device.synchronize()
check("a copy to pinned memory is seen through NumPy", shared.tolist() == [[1, 2, 3], [4, 5, 6]])

# 7. Memory is freed with the last view, and enqueued work keeps what it needs. free() gives it back now.
x.free()
try:
    x.numpy()
    check("a freed array cannot be read", False)
except jal.InvalidHandleError as e:
    check(f"a freed array cannot be read: {e.name}", True)



def draw(plt):
    # What rounding costs: the relative error of numbers from 1 to 2 in the types kernels compute with.
    exact = np.linspace(1, 2, 800, dtype=np.float32)
    fig, ax = plt.subplots(figsize=(8, 4))
    for kind in (jal.bfloat16, jal.float16):
        ax.plot(exact, np.abs(jal.array(exact).astype(kind).numpy() - exact) / exact, lw=0.8, label=kind.name)
    ax.set_xlabel("value")
    ax.set_ylabel("relative error")
    ax.set_title("Rounding of float32 to 16 bits")
    ax.legend()


picture(draw)
